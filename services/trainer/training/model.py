"""The model that is trained: a frozen base with a fresh LoRA adapter, or a base whose every weight is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from services.trainer.data.segments import FlatBatch
from services.trainer.failures import TrainingFailed
from services.trainer.fast.attention import Segments
from services.trainer.fast.proof import install_if_equal
from services.trainer.protocol import TrainSpec
from services.trainer.standalone.trained import TrainedWeights
from services.trainer.training.losses import OutputLayer
from shared.adapters import PREFIX, WEIGHTS_NAME

if TYPE_CHECKING:
    from services.trainer.training.bases import LoadBase


SCORE_NAME = PREFIX + "score.weight"
"""What PEFT calls a reward model's head in an adapter's file."""
_SCORE = "score"
_CHECKED_TOKENS = 4
_CLOSE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""How far logits may be from the model's own, relative to the largest: products are rounded alike, or nearly."""


@dataclass(frozen=True, slots=True)
class TrainableModel:
    """A causal language model, taken apart as the chunked loss needs it."""

    module: PreTrainedModel | PeftModel
    """All of it; in peft's wrapper where an adapter is trained."""
    backbone: nn.Module
    head: OutputLayer
    device: torch.device
    dtype: torch.dtype
    plain_because: str
    """Why rows are read the plain way, padded; empty where the fast path is taken."""

    def read_padded(self, inputs_BT: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """Run the layers below the output layer; returns B, T, D. No mask: see batches.Batch.

        Where `positions_BT` starts anew, another example begins, which sees nothing before it (transformers masks so by
        itself, masking_utils.find_packed_sequence_indices).
        """
        output: Any = self.backbone(input_ids=inputs_BT, position_ids=positions_BT, use_cache=False)
        return output.last_hidden_state  # type: ignore[no-any-return]

    def read_flat(self, batch: FlatBatch, segments: Segments | None = None) -> Tensor:
        """Do the same for rows without padding, on the fast path; returns T, D."""
        output: Any = self.backbone(
            input_ids=batch.inputs_T[None],
            position_ids=batch.positions_T[None],
            use_cache=False,
            segments=segments or Segments(batch.segments),
        )
        return output.last_hidden_state[0]  # type: ignore[no-any-return]

    @property
    def score(self) -> nn.Parameter | None:
        """The head of a reward model, of shape (1, D) in float32; None for a model that writes text."""
        return dict(self.module.named_parameters(recurse=False)).get(_SCORE)

    @property
    def is_whole(self) -> bool:
        """Whether every weight is trained."""
        return not isinstance(self.module, PeftModel)

    @property
    def can_share(self) -> bool:
        """Whether tokens may stand once for several rows: not when each row draws its own dropout."""
        asked = [v for name, v in self.module.config.to_dict().items() if "drop" in name and isinstance(v, float | int)]
        layers = [module.p for module in self.module.modules() if isinstance(module, nn.Dropout)]
        return not any(probability > 0 for probability in (*asked, *layers))

    @property
    def can_pack(self) -> bool:
        """Whether all layers keep packed examples apart: attention does, recurrent layers do not."""
        return self.layer_kinds <= {"full_attention", "sliding_attention"}

    @property
    def layer_kinds(self) -> set[str]:
        return set(getattr(self.module.config, "layer_types", None) or ["full_attention"])

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name, in a stable order; one that two layers share is there once."""
        return {name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad}


def choose_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_dtype(device: torch.device, wanted: Literal["auto", "float32", "bfloat16"] = "auto") -> torch.dtype:
    """What is wanted; of itself bf16 where it is fast (CUDA, CPUs with AMX).

    Without such instructions it is several times slower than fp32.
    """
    if wanted != "auto":
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def build_model(spec: TrainSpec, *, why_plain: str = "", load: LoadBase | None = None) -> TrainableModel:
    """Load the base, with a LoRA adapter on it: the parent's, else one whose start depends on spec.seed alone.

    With the finetuning_type `full` it is the base's weights that are trained. The model computes on the fast path where
    that gives the same, unless `why_plain` says why it is not to. `load` is where a frozen base comes from, if it is
    not simply loaded.

    Raises TrainingFailed(unsupported_base_model) for architectures whose loss would come out wrong, and
    TrainingFailed(model_not_found) when the parent's weights are not there.
    """
    device = choose_device()
    if spec.finetuning_type == "full":
        module: Any = load_base(Path(spec.base_folder), torch.float32).requires_grad_(True)
        TrainedWeights(Path(spec.base_folder), dict(module.named_parameters()))  # what cannot be written shows now
        torch.manual_seed(spec.seed)
    else:
        module = _with_adapter(spec, device, load or load_base)
    module.to(device)
    causal = module.get_base_model() if isinstance(module, PeftModel) else module
    head = causal.get_output_embeddings()
    dtype: torch.dtype = head.weight.dtype
    backbone = getattr(causal, causal.base_model_prefix)
    model = TrainableModel(module, backbone, _output_layer(head.weight, causal.config), device, dtype, why_plain)
    _check_logits(model, causal)
    if not why_plain:
        model = replace(model, plain_because=install_if_equal(model))
    if spec.method == "reward":
        _add_score(model, spec)
    return model


def _add_score(model: TrainableModel, spec: TrainSpec) -> None:
    """Give the model a head: the parent's if it has one, else a random one (Stiennon et al. 2020, arXiv:2009.01325)."""
    width = model.head.weight_VD.shape[1]
    generator = torch.Generator().manual_seed(spec.seed)
    start_1D = torch.randn(1, width, generator=generator) / math.sqrt(width + 1)
    if spec.parent_folder:
        start_1D = load_file(Path(spec.parent_folder) / WEIGHTS_NAME).get(SCORE_NAME, start_1D)
    model.module.register_parameter(_SCORE, nn.Parameter(start_1D.float().to(model.device)))


def _output_layer(weight_VD: Tensor, config: Any) -> OutputLayer:
    """Read how a model scales and caps its logits; each of these names belongs to one family of models."""
    scale = (getattr(config, "logit_scale", None) or 1.0) * (getattr(config, "lm_head_multiplier", None) or 1.0)
    scale /= getattr(config, "logits_scaling", None) or 1.0
    return OutputLayer(weight_VD, float(scale), getattr(config, "final_logit_softcapping", None))


def _check_logits(model: TrainableModel, causal: Any) -> None:
    """Compare the logits of a few tokens with the model's own: some families do more behind the output layer."""
    hidden_BTD: list[Tensor] = []
    hook = model.backbone.register_forward_hook(lambda *seen: hidden_BTD.append(seen[-1].last_hidden_state))
    try:
        with torch.no_grad():
            tokens_BT = torch.arange(_CHECKED_TOKENS, device=model.device)[None]
            expected_TV = causal(input_ids=tokens_BT, use_cache=False).logits[0].float()
            found_TV = model.head.logits(hidden_BTD[0][0])
    finally:
        hook.remove()
    if not expected_TV.isfinite().all():
        return  # a base that gives no numbers is refused where its loss is looked at
    off = (found_TV - expected_TV).abs().max() / expected_TV.abs().max()
    if not off <= _CLOSE[model.dtype]:
        raise TrainingFailed(
            "The base model changes its logits behind the output layer in a way that is not supported here, so its "
            "loss would come out wrong.",
            code="unsupported_base_model",
        )


def _with_adapter(spec: TrainSpec, device: torch.device, load: LoadBase) -> PeftModel:
    dtype = choose_dtype(device, spec.dtype)
    base = load(Path(spec.base_folder), dtype, quantize_on=device if spec.quantization == "nf4" else None)
    torch.manual_seed(spec.seed)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=int(spec.alpha) if spec.alpha == int(spec.alpha) else spec.alpha,
        use_rslora=spec.use_rslora,
        lora_dropout=spec.dropout,
        target_modules=list(spec.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    peft: PeftModel = get_peft_model(base, config)
    if spec.parent_folder:
        load_adapter(peft, Path(spec.parent_folder))
    return peft


def load_adapter(peft: PeftModel, folder: Path) -> None:
    """Put an exported adapter's weights into an adapter of the same form. Raises TrainingFailed(model_not_found)."""
    try:
        weights = load_file(folder / WEIGHTS_NAME)
    except (OSError, SafetensorError) as error:
        raise TrainingFailed(
            f"The adapter {folder.name} is not in the data folder any more.", code="model_not_found"
        ) from error
    score = dict(peft.named_parameters(recurse=False)).get(_SCORE)
    start_1D = weights.pop(SCORE_NAME, None)
    if score is not None and start_1D is not None:
        with torch.no_grad():
            score.copy_(start_1D)
    outcome = set_peft_model_state_dict(peft, weights)
    missing = [name for name in outcome.missing_keys if "lora_" in name]
    if outcome.unexpected_keys or missing:
        raise TrainingFailed(
            f"The adapter {folder.name} has another form than it should: {(missing + outcome.unexpected_keys)[0]}.",
            code="invalid_parent_model",
        )


def load_base(folder: Path, dtype: torch.dtype, *, quantize_on: torch.device | None = None) -> nn.Module:
    """Load a causal language model from a local folder: safetensors only, no code of its own.

    With `quantize_on`, its linear layers but the output layer are put there in 4 bits (NF4, scales quantised too).
    """
    quantized: dict[str, Any] = {}
    if quantize_on is not None:
        in_4_bits = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        quantized = {"quantization_config": in_4_bits, "device_map": {"": quantize_on}}
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # PyTorch's attention knows no soft caps, and transformers would leave them out.
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
    base: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        **quantized,
        dtype=dtype,
        attn_implementation=attention,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    base.requires_grad_(False)
    if quantize_on is not None:
        _keep_layout(base)
    return base  # type: ignore[no-any-return]


def _keep_layout(base: nn.Module) -> None:
    """Keep bitsandbytes from repacking weights for inference at the first evaluation: there is no way back to training.

    It does so on CPUs with AVX512-BF16 (bitsandbytes 0.50, Linear4bit.forward).
    """
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
