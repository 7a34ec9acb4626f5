"""A step's numbers as curves: what TensorBoard, Weights & Biases and MLflow draw over the steps."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from services.trainer.protocol import Metrics
from shared.rollout_records import RolloutStats

_NO_CURVES = ("rollouts", "valid_rollouts")
_ROLLOUTS = (
    "reward_mean", "reward_std", "zero_variance_share", "completion_tokens_mean", "truncated_share", "repeated_share",
    "ungraded",
)  # fmt: skip
_ODD = re.compile(r"[^A-Za-z0-9_.\- ]")
"""What MLflow takes no names with."""


def curves(metrics: Metrics) -> dict[str, float]:
    """Return every number that there is, by name; those of rollouts are `train_…`, of the validation `full_valid_…`."""
    values: dict[str, Any] = msgspec.to_builtins(metrics)
    found = {name: value for name, value in values.items() if name not in _NO_CURVES and value is not None}
    return found | _of(metrics.rollouts, "train") | _of(metrics.valid_rollouts, "full_valid")


def _of(stats: RolloutStats | None, prefix: str) -> dict[str, float]:
    if stats is None:
        return {}
    found = {f"{prefix}_{name}": getattr(stats, name) for name in _ROLLOUTS}
    return found | {f"{prefix}_score_{_ODD.sub('_', name)}": score for name, score in stats.scores.items()}
