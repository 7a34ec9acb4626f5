"""What a GGUF file tells of a model's architecture, and where its tensors differ from transformers' own.

llama.cpp turns the two halves of a head's rotation into pairs for Llama, and has no sliding windows for these four
architectures: a model with one is given the window as its context, within which it computes the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from services.trainer.standalone import ExportRefused
from services.trainer.standalone.weights import BaseWeights

_KNOWN = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "MistralForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
}
_COMPUTED = "rotary_emb.inv_freq"  # old checkpoints store what follows from the configuration
_OUTPUT = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model that GGUF has a form for."""

    arch: gguf.MODEL_ARCH
    config: PretrainedConfig

    @property
    def name(self) -> str:
        return str(gguf.MODEL_ARCH_NAMES[self.arch])

    def describe(self, writer: gguf.GGUFWriter) -> None:
        """Write the sizes and constants that the model computes with."""
        config = self.config
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(self._context_length())
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_key_length(self._head_dim())
        writer.add_value_length(self._head_dim())
        writer.add_rope_dimension_count(self._head_dim())
        writer.add_rope_freq_base(self._rope()["rope_theta"])
        if self._rope()["rope_type"] == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(self._rope()["factor"])

    def names(self, weights: BaseWeights) -> dict[str, str]:
        """Return GGUF's name for each tensor that belongs into the file. Raises ExportRefused for one without."""
        known = gguf.get_tensor_name_map(self.arch, self.config.num_hidden_layers)
        names = {
            name: known.get_name(name, try_suffixes=(".weight", ".bias"))
            for name in weights.tensors
            if not name.endswith(_COMPUTED) and not (name == _OUTPUT and weights.ties_output)
        }
        if unnamed := [name for name, new in names.items() if new is None]:
            raise ExportRefused(f"GGUF has no place for the tensor {unnamed[0]} in a model of the kind {self.name}")
        return names

    def arranged(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor in the order that llama.cpp wants its rows in."""
        module = name.rsplit(".", 2)[-2]
        if self.arch != gguf.MODEL_ARCH.LLAMA or module not in ("q_proj", "k_proj"):
            return tensor
        heads = self.config.num_attention_heads if module == "q_proj" else self.config.num_key_value_heads
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return halves.transpose(1, 2).reshape(tensor.shape)

    def rope_divisors(self) -> NDArray[np.float32] | None:
        """Return what the rotation's frequencies are divided by, for Llama 3's way of reaching further; else None."""
        if self._rope()["rope_type"] != "llama3":
            return None
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](self.config, torch.device("cpu"))
        exponents = torch.arange(0, self._head_dim(), 2, dtype=torch.float32) / self._head_dim()
        divisors: NDArray[np.float32] = (self._rope()["rope_theta"] ** -exponents / scaled).numpy()
        return divisors

    def _head_dim(self) -> int:
        return int(getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads)

    def _context_length(self) -> int:
        window = (
            getattr(self.config, "sliding_window", None) if getattr(self.config, "use_sliding_window", True) else None
        )
        return int(min(self.config.max_position_embeddings, window or self.config.max_position_embeddings))

    def _rope(self) -> dict[str, Any]:
        return dict(self.config.rope_parameters)

    def check(self) -> None:
        """Raise ExportRefused for what llama.cpp would compute otherwise."""
        if self.config.hidden_act != "silu":
            raise ExportRefused(f"its activation {self.config.hidden_act!r} is not the one that GGUF assumes, silu")
        rope = self._rope()
        if rope.get("rope_type") not in ("default", "linear", "llama3") or rope.get("partial_rotary_factor", 1) != 1:
            raise ExportRefused(f"its rotary embedding {rope.get('rope_type')!r} is not written as GGUF yet")


def architecture_of(weights: BaseWeights, base: Path) -> Architecture:
    """Return how GGUF has this model. Raises ExportRefused that names the architecture when it is not one of ours."""
    kind = (weights.config.get("architectures") or ["?"])[0]
    if kind not in _KNOWN:
        raise ExportRefused(
            f"GGUF is written for {', '.join(sorted(_KNOWN))}; this is {kind}. --merge without --gguf gives a folder"
        )
    found = Architecture(_KNOWN[kind], AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False))
    found.check()
    return found
