"""Optimiser and learning-rate schedule for LoRA parameters."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn import Parameter

BASE_LEARNING_RATE = 5e-4
"""What a learning_rate_multiplier of 1 means, for LoRA with an alpha of twice the rank."""
WARMUP_SHARE = 0.05
MAX_GRAD_NORM = 1.0


def build_optimizer(parameters: Iterable[Parameter]) -> torch.optim.AdamW:
    """AdamW without weight decay: the low rank itself keeps an adapter small."""
    return torch.optim.AdamW(list(parameters), lr=0.0, betas=(0.9, 0.999), weight_decay=0.0)


def learning_rate_at(step: int, total_steps: int, multiplier: float) -> float:
    """Linear warm-up over the first twentieth of the steps, then linear decay; never zero. Steps count from 1."""
    warmup = max(1, round(total_steps * WARMUP_SHARE))
    peak = BASE_LEARNING_RATE * multiplier
    if step <= warmup:
        return peak * step / warmup
    return peak * (total_steps - step + 1) / (total_steps - warmup + 1)
