"""A grade in the making: what a grader, or one part of it, has found so far."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

from shared.schemas.graders import GraderErrors, JudgeUsage

Namespaces = dict[str, dict[str, Any]]
"""What templates may name: `item` and `sample`."""
MAX_REWARD = 1e30
"""Rewards further from 0 are errors: their squares and sums, in single precision too, would be no numbers."""


class Score(Struct, frozen=True, kw_only=True):
    """A reward, or what went wrong."""

    reward: float = 0.0
    errors: GraderErrors = GraderErrors()
    label: str = ""
    """What a label_model's judge has said."""
    usage: dict[str, JudgeUsage] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)


def failed(**errors: Any) -> Score:
    """Form the score of a grader that failed, by the fields of GraderErrors."""
    return Score(errors=GraderErrors(**errors))
