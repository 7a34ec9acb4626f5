"""Rollouts of a reinforcement job as the API shows them: answers that it tried, their rewards, and how they develop."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

AlarmKind: TypeAlias = Literal["length", "repetition", "drift", "agreement"]


class RolloutAlarm(Struct, frozen=True, kw_only=True):
    """A sign that the model learns to please the grader rather than to answer well: worth a look at the answers."""

    kind: Annotated[
        AlarmKind,
        Meta(
            description="`length`: answers grow or shrink while the reward rises; `repetition`: they repeat themselves "
            "more; `drift`: one part of the grader rises while another falls; `agreement`: a part no longer agrees "
            "with the others."
        ),
    ]
    step: Annotated[int, Meta(description="The step at which it was first seen.")]
    message: str
    grader: Annotated[str | None, Meta(description="The part of the grader that it is about.")] = None
    before: Annotated[float, Meta(description="What the first steps had.")]
    now: Annotated[float, Meta(description="What the steps before the alarm had.")]
