"""The life of a fine-tuning job, as data."""

from __future__ import annotations

from enum import StrEnum

from shared.errors import TransitionRefused


class JobState(StrEnum):
    """OpenAI's states of a fine-tuning job."""

    VALIDATING_FILES = "validating_files"
    """Accepted; its files are being read."""
    QUEUED = "queued"
    """Files are good; waits for a trainer."""
    RUNNING = "running"
    """A training process works on it."""
    PAUSED = "paused"
    """Stopped by its owner for a while; goes on from where it was."""
    SUCCEEDED = "succeeded"
    """The model is published."""
    FAILED = "failed"
    """Ended with an error."""
    CANCELLED = "cancelled"
    """Stopped by its owner."""


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})

ALLOWED: dict[JobState, frozenset[JobState]] = {
    JobState.VALIDATING_FILES: frozenset({JobState.QUEUED, JobState.PAUSED, JobState.FAILED, JobState.CANCELLED}),
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.PAUSED, JobState.FAILED, JobState.CANCELLED}),
    # Back to the queue: the worker stops or died, and another goes on from the last checkpoint.
    JobState.RUNNING: frozenset(
        {JobState.QUEUED, JobState.PAUSED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}
    ),
    # Resumed: to where it was, except that a running job waits for a trainer again.
    JobState.PAUSED: frozenset({JobState.VALIDATING_FILES, JobState.QUEUED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


def check_transition(current: JobState, target: JobState) -> None:
    """Raise TransitionRefused unless `current` may become `target`; staying is always allowed."""
    if target != current and target not in ALLOWED[current]:
        raise TransitionRefused(f"A job that is {current.value} cannot become {target.value}.")
