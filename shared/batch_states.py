"""The life of a batch, as data."""

from __future__ import annotations

from enum import StrEnum

from shared.errors import TransitionRefused


class BatchState(StrEnum):
    """OpenAI's states of a batch."""

    VALIDATING = "validating"
    """Accepted; its input file is being read."""
    IN_PROGRESS = "in_progress"
    """Its requests are being answered."""
    FINALIZING = "finalizing"
    """Every request has its result; the files are being made."""
    COMPLETED = "completed"
    """The files are there, whether the requests succeeded or not."""
    FAILED = "failed"
    """The input cannot be worked on; `errors` says why."""
    EXPIRED = "expired"
    """Its time was over before its requests were answered; what was answered is in the files."""
    CANCELLING = "cancelling"
    """Its owner wants it stopped; the files are being made of what was answered."""
    CANCELLED = "cancelled"
    """Stopped by its owner."""


ENDED = frozenset({BatchState.COMPLETED, BatchState.FAILED, BatchState.EXPIRED, BatchState.CANCELLED})

ALLOWED: dict[BatchState, frozenset[BatchState]] = {
    BatchState.VALIDATING: frozenset({BatchState.IN_PROGRESS, BatchState.FAILED, BatchState.CANCELLING}),
    BatchState.IN_PROGRESS: frozenset(
        {BatchState.FINALIZING, BatchState.EXPIRED, BatchState.FAILED, BatchState.CANCELLING}
    ),
    # Nothing is left to cancel or to expire: every request has its result.
    BatchState.FINALIZING: frozenset({BatchState.COMPLETED, BatchState.FAILED}),
    BatchState.CANCELLING: frozenset({BatchState.CANCELLED}),
    BatchState.COMPLETED: frozenset(),
    BatchState.FAILED: frozenset(),
    BatchState.EXPIRED: frozenset(),
    BatchState.CANCELLED: frozenset(),
}


def check_batch_transition(current: BatchState, target: BatchState) -> None:
    """Raise TransitionRefused unless `current` may become `target`; staying is always allowed."""
    if target != current and target not in ALLOWED[current]:
        raise TransitionRefused(
            f"A batch that is {current.value} cannot become {target.value}.", code="invalid_batch_state"
        )
