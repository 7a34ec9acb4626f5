"""When a job may be done, from the pace of its present attempt."""

from __future__ import annotations

import time

ESTIMATE_EVERY_S = 5.0


class Pace:
    """Estimates what is left from the time between the first step of this attempt and the present one.

    Evaluations and resume points in between count, so that the estimate is of the whole, not of steps alone.
    """

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def seconds_left(self, step: int, total_steps: int) -> float | None:
        """Return the seconds until the last step; None after the first step of an attempt. Call it once a step."""
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
            return None
        first, since = self._first
        return round((total_steps - step) * (now - since) / (step - first), 3)


class Estimates:
    """Picks, from what each step says of the time left, a new estimate of the end every few seconds."""

    def __init__(self) -> None:
        self._made_at = 0.0

    def finish(self, seconds_left: float | None) -> int | None:
        """Return the Unix time of the last step; None when there is nothing new to say."""
        now = time.monotonic()
        if seconds_left is None or now - self._made_at < ESTIMATE_EVERY_S:
            return None
        self._made_at = now
        return int(time.time() + seconds_left)
