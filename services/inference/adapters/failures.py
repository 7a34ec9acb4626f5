"""Adapters that could not be served: why, and when they are looked at again."""

from __future__ import annotations

import time
from typing import NamedTuple

RETRY_S = 30.0
"""How long an adapter that failed is refused without another look at its files; twice as long after each failure."""
QUARANTINE_AFTER = 3
"""Failures in a row after which it is not tried any more, until somebody asks for it."""


class Failure(NamedTuple):
    """Why an adapter is refused, how often in a row it failed, and until when that stands, in monotonic seconds."""

    reason: str
    times: int
    until: float

    @property
    def is_final(self) -> bool:
        return self.times >= QUARANTINE_AFTER


class Failures:
    """What failed, by adapter number."""

    def __init__(self) -> None:
        self._by_id: dict[int, Failure] = {}

    def note(self, int_id: int, reason: str) -> Failure:
        """Count a failure."""
        times = self._by_id[int_id].times + 1 if int_id in self._by_id else 1
        failure = Failure(reason, times, time.monotonic() + RETRY_S * 2 ** (times - 1))
        self._by_id[int_id] = failure
        return failure

    def standing(self, int_id: int) -> Failure | None:
        """Return the failure for which an adapter is refused now; None when it may be tried."""
        failure = self._by_id.get(int_id)
        if failure is None or (failure.until < time.monotonic() and not failure.is_final):
            return None
        return failure

    def forget(self, int_id: int) -> None:
        """Have an adapter tried again as if it had never failed."""
        self._by_id.pop(int_id, None)
