"""The base model with a fresh LoRA adapter, frozen everywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache

from services.trainer.failures import TrainingFailed
from services.trainer.protocol import TrainSpec

# These change the logits behind the output layer, which the chunked loss applies by itself.
_LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")


@dataclass(frozen=True, slots=True)
class LoraModel:
    """A causal language model, taken apart as the chunked loss needs it."""

    peft: PeftModel
    backbone: nn.Module
    head_VD: Tensor
    device: torch.device
    dtype: torch.dtype

    def hidden_states(self, inputs_BT: Tensor, prefix: Sequence[int] = ()) -> Tensor:
        """Run the layers below the output layer; returns B, T, D. No mask: see batches.Batch.

        `prefix` stands before every row, is read once for all of them, and gets its gradient from all of them.
        """
        cache = None
        if prefix:
            cache = DynamicCache(config=self.peft.config)
            prefix_1P = torch.tensor([list(prefix)], device=inputs_BT.device)
            self.backbone(input_ids=prefix_1P, past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(len(inputs_BT))
        output: Any = self.backbone(input_ids=inputs_BT, past_key_values=cache, use_cache=cache is not None)
        return output.last_hidden_state  # type: ignore[no-any-return]

    @property
    def can_share_prefixes(self) -> bool:
        """Whether reading a prefix once is the same as reading it in each row: full attention only, no dropout."""
        kinds = set(getattr(self.peft.config, "layer_types", None) or ["full_attention"])
        return kinds == {"full_attention"} and self.peft.peft_config["default"].lora_dropout == 0

    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters by name, in a stable order."""
        return {name: parameter for name, parameter in self.peft.named_parameters() if parameter.requires_grad}


def choose_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_dtype(device: torch.device) -> torch.dtype:
    """bf16 where it is fast (CUDA, CPUs with AMX); without such instructions it is several times slower than fp32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def build_model(spec: TrainSpec) -> LoraModel:
    """Load the base and put a LoRA adapter on it; the adapter's start depends on spec.seed alone.

    Raises TrainingFailed(unsupported_base_model) for architectures whose loss would come out wrong.
    """
    device = choose_device()
    dtype = choose_dtype(device)
    base = load_base(Path(spec.base_folder), dtype)
    torch.manual_seed(spec.seed)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=list(spec.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    peft = get_peft_model(base, config)
    peft.to(device)
    causal: Any = peft.get_base_model()
    head = causal.get_output_embeddings()
    return LoraModel(peft, getattr(causal, causal.base_model_prefix), head.weight, device, dtype)


def load_base(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load a causal language model from a local folder: safetensors only, no code of its own."""
    base: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation="sdpa",
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    changes = [name for name in _LOGIT_CHANGES if getattr(base.config, name, None) not in (None, 1, 1.0)]
    if changes or getattr(base.get_output_embeddings(), "bias", None) is not None:
        raise TrainingFailed(
            "The base model changes its logits behind the output layer, which is not supported: "
            + (", ".join(changes) or "bias"),
            code="unsupported_base_model",
        )
    base.requires_grad_(False)
    return base  # type: ignore[no-any-return]
