"""The life of an eval's run, as data."""

from __future__ import annotations

from enum import StrEnum

from shared.errors import TransitionRefused


class EvalRunState(StrEnum):
    """OpenAI's states of a run."""

    QUEUED = "queued"
    """Accepted; nobody has looked at its rows."""
    IN_PROGRESS = "in_progress"
    """Its rows are being answered and graded."""
    COMPLETED = "completed"
    """Every row has its result, whether it passed or not."""
    CANCELED = "canceled"
    """Stopped by its owner; the results that it had stay."""
    FAILED = "failed"
    """Its rows cannot be worked on; `error` says why."""


ALLOWED: dict[EvalRunState, frozenset[EvalRunState]] = {
    EvalRunState.QUEUED: frozenset({EvalRunState.IN_PROGRESS, EvalRunState.FAILED, EvalRunState.CANCELED}),
    EvalRunState.IN_PROGRESS: frozenset({EvalRunState.COMPLETED, EvalRunState.FAILED, EvalRunState.CANCELED}),
    EvalRunState.COMPLETED: frozenset(),
    EvalRunState.CANCELED: frozenset(),
    EvalRunState.FAILED: frozenset(),
}

ENDED = frozenset(state for state, targets in ALLOWED.items() if not targets)


def check_run_transition(current: EvalRunState, target: EvalRunState) -> None:
    """Raise TransitionRefused unless `current` may become `target`; staying is always allowed."""
    if target != current and target not in ALLOWED[current]:
        raise TransitionRefused(
            f"An eval run that is {current.value} cannot become {target.value}.", code="invalid_run_state"
        )
