"""Optimiser and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from shared.schemas.methods import MethodName

BASE_LEARNING_RATE = 5e-4
"""What a learning_rate_multiplier of 1 means, for LoRA with an alpha of twice the rank."""
DPO_LEARNING_RATE = 5e-5
"""The same for DPO, a tenth of it.

Published recipes for LoRA lie between 5e-6 for thousands of steps (TRL's script dpo.py) and 5e-5 for some 200
(M. Labonne, "Fine-tune a Mistral-7b model with DPO", rank 16); jobs here have tens to hundreds of steps.
"""
ORPO_LEARNING_RATE = 8e-5
"""The same for ORPO: ten times 8e-6, with which published recipes train for thousands of steps."""
REINFORCEMENT_LEARNING_RATE = 1e-4
"""The same for reinforcement: ten times what full fine-tuning bears (Schulman et al. 2025, "LoRA Without Regret")."""
REWARD_LEARNING_RATE = 1e-4
"""The same for reward models, as TRL's documentation has it for LoRA."""

FULL_SHARE = 0.1
"""What a base rate is multiplied by where every weight is trained.

LoRA's best rate is some ten times that of full fine-tuning (Schulman et al. 2025, "LoRA Without Regret").
"""

Schedule = Literal["linear", "cosine", "constant"]


def build_optimizer(parameters: Iterable[Parameter], weight_decay: float = 0.0) -> torch.optim.AdamW:
    """AdamW with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101).

    Parameters of which a process has a share are in a group of their own. One tensor after the other: all at once would
    need another tensor of each parameter's size.
    """
    shares: list[Parameter] = []
    rest: list[Parameter] = []
    for parameter in parameters:
        (shares if isinstance(parameter, DTensor) else rest).append(parameter)
    groups = [{"params": some} for some in (shares, rest) if some]  # one product takes tensors of one kind only
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), weight_decay=weight_decay, foreach=False)


_LEARNING_RATES: dict[MethodName, float] = {
    "supervised": BASE_LEARNING_RATE,
    "dpo": DPO_LEARNING_RATE,
    "reinforcement": REINFORCEMENT_LEARNING_RATE,
    "kto": DPO_LEARNING_RATE,
    "orpo": ORPO_LEARNING_RATE,
    "reward": REWARD_LEARNING_RATE,
}


def base_learning_rate(method: MethodName, finetuning_type: Literal["lora", "full"]) -> float:
    """Return what a learning_rate_multiplier of 1 means."""
    rate = _LEARNING_RATES[method]
    return rate * FULL_SHARE if finetuning_type == "full" else rate


def learning_rate_at(
    step: int, total_steps: int, peak: float, *, schedule: Schedule = "linear", warmup_ratio: float = 0.05
) -> float:
    """Linear warm-up over a share of the steps, then along `schedule`; never zero. Steps count from 1.

    The warm-up takes one step at least, which is the peak already.
    """
    warmup = max(1, round(total_steps * warmup_ratio))
    if step <= warmup:
        return peak * step / warmup
    if schedule == "constant":
        return peak
    left, decay = total_steps - step + 1, total_steps - warmup + 1
    if schedule == "cosine":
        return peak * 0.5 * (1 - math.cos(math.pi * (left / decay)))
    return peak * left / decay
