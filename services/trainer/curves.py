"""A step's metrics as numbers by name, for TensorBoard, Weights & Biases and MLflow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from services.trainer.protocol import Metrics

_OF_ROLLOUTS = (
    "reward_mean", "reward_std", "zero_variance_share", "completion_tokens_mean", "truncated_share", "ungraded",
    "sampling_s", "grading_s",
)  # fmt: skip
_NOT_IN_NAMES = re.compile(r"[^\w.\- ]")


def curves(metrics: Metrics) -> dict[str, float]:
    """Return all numbers there are; those of rollouts as train_reward_mean, valid_reward_mean, train_score_NAME, …"""
    values = msgspec.to_builtins(metrics)
    found = {name: value for name, value in values.items() if isinstance(value, int | float)}
    for prefix, name in (("train", "rollouts"), ("valid", "valid_rollouts")):
        found |= _of_rollouts(prefix, values.get(name) or {})
    return found


def _of_rollouts(prefix: str, stats: Mapping[str, Any]) -> dict[str, float]:
    """Read encoded RolloutStats."""
    numbers = {f"{prefix}_{name}": stats[name] for name in _OF_ROLLOUTS if name in stats}
    scores = {
        f"{prefix}_score_{_NOT_IN_NAMES.sub('_', name)}": score for name, score in stats.get("scores", {}).items()
    }
    return numbers | scores
