"""Random two-layer models of each architecture, with the tokenizer of tiny.py.

Each has what sets its kind apart: grouped keys and values, heads of another width than hidden size / heads, biases,
norms of queries and keys, sliding windows shorter than the rows, soft caps that bite, tied or separate output layers.
Weights are large enough for attention and caps to matter, and norms and biases differ from ones and zeros, so that
leaving any of them out shows in the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from tests.unit.trainer.tiny import CHATML, tiny_tokenizer

SLIDING_WINDOW = 10
"""Tokens a sliding layer looks back; the rows of tiny.py have 26 to 30."""
_MIXED = ["sliding_attention", "full_attention"]
_SPREAD = 0.15
"""Standard deviation of the weights; transformers' 0.02 would leave a model this narrow almost constant."""

CONFIGS: dict[str, tuple[Callable[..., PretrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {"tie_word_embeddings": False}),
    "smollm": (LlamaConfig, {"tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 1,
                             "hidden_size": 48}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2-sliding": (Qwen2Config, {"tie_word_embeddings": False, "use_sliding_window": True, "max_window_layers": 1,
                                    "sliding_window": SLIDING_WINDOW}),
    "qwen3": (Qwen3Config, {"tie_word_embeddings": True, "head_dim": 24}),
    "mistral": (MistralConfig, {"tie_word_embeddings": False, "head_dim": 24, "sliding_window": None}),
    "mistral-sliding": (MistralConfig, {"tie_word_embeddings": False, "sliding_window": SLIDING_WINDOW}),
    "gemma2": (Gemma2Config, {"head_dim": 24, "query_pre_attn_scalar": 20, "sliding_window": SLIDING_WINDOW,
                              "layer_types": _MIXED, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": (Gemma3TextConfig, {"head_dim": 24, "query_pre_attn_scalar": 20, "sliding_window": SLIDING_WINDOW,
                                  "layer_types": _MIXED}),
    "olmo2": (Olmo2Config, {"tie_word_embeddings": False}),
    "granite": (GraniteConfig, {"tie_word_embeddings": True, "logits_scaling": 4.0, "residual_multiplier": 0.5,
                                "attention_multiplier": 0.2, "embedding_multiplier": 3.0}),
    "phi": (PhiConfig, {"tie_word_embeddings": False}),
}  # fmt: skip
ARCHITECTURES = tuple(CONFIGS)


def save_tiny_model(folder: Path, architecture: str, *, template: str = CHATML) -> Path:
    """Write a base model folder, about 0.5 MB, with the same random weights each time."""
    tokenizer = tiny_tokenizer(template)
    config_class, own = CONFIGS[architecture]
    common = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(config_class(**{**common, **own}), dtype=torch.float32)
    _spread(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _spread(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * _SPREAD
            parameter.copy_(noise if parameter.ndim == 2 else parameter + noise)
