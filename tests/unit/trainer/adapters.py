"""Adapters for the tiny models, made by PEFT itself from random numbers, and what models make of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VARIED = {
    "r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ALL, "lora_dropout": 0.1,
    "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 3}, "alpha_pattern": {"layers.0.self_attn.v_proj": 11},
}  # fmt: skip
"""Different ranks and scales in one adapter."""


def save_adapter(base: Path, folder: Path, **options: Any) -> Path:
    """Write an adapter that moves its base visibly."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", **{**VARIED, **options}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def with_adapter(base: Path, adapter: Path) -> Any:
    """Load base and adapter as PEFT's users do."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(plain, str(adapter)).eval()


PROMPTS = torch.tensor([[6 + 7 * row + 11 * column for column in range(9)] for row in range(3)])


def logits(model: Any, prompts: Tensor = PROMPTS) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(prompts).logits.float()
    return found


def greedy(model: Any, prompts: Tensor = PROMPTS, count: int = 12) -> list[list[int]]:
    """The next tokens of each prompt, with nothing that ends them early."""
    options = {"do_sample": False, "max_new_tokens": count, "min_new_tokens": count}
    answers = model.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts), **options)
    tokens: list[list[int]] = answers[:, prompts.shape[1] :].tolist()
    return tokens
