"""When a job may be done, from the pace of its present attempt."""

from __future__ import annotations

import time

from services.trainer.protocol import Metrics

EVERY_S = 5.0


class Pace:
    """Makes an estimate every few seconds."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._estimated_at = 0.0

    def finish(self, metrics: Metrics) -> int | None:
        """Return the Unix time of the last step; None when there is nothing new to say."""
        now = time.monotonic()
        self._first = self._first or (metrics.step, now)
        first, since = self._first
        if metrics.step == first or now - self._estimated_at < EVERY_S:
            return None
        self._estimated_at = now
        return int(time.time() + (metrics.total_steps - metrics.step) * (now - since) / (metrics.step - first))
