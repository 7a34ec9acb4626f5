"""The life of a flow, as data: a resource that goes through stages over hours and waits for jobs and runs of evals."""

from __future__ import annotations

from enum import StrEnum

from shared.errors import TransitionRefused


class FlowState(StrEnum):
    """What a flow is at; which of its stages is a matter of its kind."""

    QUEUED = "queued"
    """Accepted; nothing has been done for it."""
    IN_PROGRESS = "in_progress"
    """One of its stages is worked on, or waited for."""
    COMPLETED = "completed"
    """Every stage has been gone through."""
    FAILED = "failed"
    """It cannot go on; `error` says why."""
    CANCELED = "canceled"
    """Stopped by its owner; what it has made stays."""


ALLOWED: dict[FlowState, frozenset[FlowState]] = {
    FlowState.QUEUED: frozenset({FlowState.IN_PROGRESS, FlowState.COMPLETED, FlowState.FAILED, FlowState.CANCELED}),
    FlowState.IN_PROGRESS: frozenset({FlowState.COMPLETED, FlowState.FAILED, FlowState.CANCELED}),
    FlowState.COMPLETED: frozenset(),
    FlowState.FAILED: frozenset(),
    FlowState.CANCELED: frozenset(),
}

ENDED = frozenset(state for state, targets in ALLOWED.items() if not targets)


def check_flow_transition(current: FlowState, target: FlowState, *, called: str) -> None:
    """Raise TransitionRefused unless `current` may become `target`; staying is always allowed."""
    if target != current and target not in ALLOWED[current]:
        raise TransitionRefused(
            f"A {called} that is {current.value} cannot become {target.value}.", code=f"invalid_{called}_state"
        )
