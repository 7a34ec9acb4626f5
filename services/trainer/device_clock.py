"""Whose time a worker's devices spend: jobs that train at the same time share it evenly."""

from __future__ import annotations

import time
from collections.abc import Callable


class DeviceClock:
    """Seconds of devices by job, from `enter` to `leave`; every attempt begins at 0."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._settled_at = now()
        self._spent: dict[str, float] = {}
        self._devices: dict[str, int] = {}

    def enter(self, job_id: str, *, devices: int = 1) -> None:
        """Begin an attempt that has so many devices."""
        self._settle()
        self._spent[job_id] = 0.0
        self._devices[job_id] = devices

    def spent(self, job_id: str) -> float:
        """Return the device seconds of an attempt under way."""
        self._settle()
        return self._spent[job_id]

    def leave(self, job_id: str) -> None:
        """End an attempt."""
        self._settle()
        del self._spent[job_id], self._devices[job_id]

    def _settle(self) -> None:
        """Give the time since the last look to those that were there."""
        now = self._now()
        passed, self._settled_at = now - self._settled_at, now
        for job_id, devices in self._devices.items():
            self._spent[job_id] += passed * devices / len(self._devices)
