"""A job's lease as its training process sees it: a file in the job folder, which the worker renews with the lease.

A worker that is frozen, or cut off from Redis, goes on owning a process that trains, while another worker claims the
job. So that never two write into a job's folder, the process looks at this file before each step and each write: it
waits while the lease has run out, and ends when the file names another claim. The clock is the machine's own and goes
on in its sleep (CLOCK_BOOTTIME), so a changed date moves nothing.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from shared.errors import LeaseLost

NAME = ".lease"
CLAIM_VARIABLE = "SELFTUNE_PROCESS_LEASE"
"""Names the claim that a process of its own was started under; one for several jobs takes what it finds first."""
_LOOK_S = 0.2
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_MAX_BYTES = 200


def now_s() -> float:
    """Seconds since this machine started."""
    return time.clock_gettime(_CLOCK)


class LeaseFile:
    """The worker's side."""

    def __init__(self, folder: Path, token: str) -> None:
        self._path = folder / NAME
        self._token = token

    def write(self, until_s: float) -> None:
        """Say that the claim holds until `until_s`, in seconds of now_s(). Raises LeaseLost if there is a later one."""
        # In place: a full disk takes no new file.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            _, token = _parsed(os.pread(descriptor, _MAX_BYTES, 0))
            if _number(token) > _number(self._token):
                raise LeaseLost("another worker has claimed the job")
            line = f"{until_s:020.3f} {self._token}\n".encode()
            os.pwrite(descriptor, line, 0)
            os.ftruncate(descriptor, len(line))
        finally:
            os.close(descriptor)


def _parsed(line: bytes) -> tuple[float, str]:
    """Read (end of the lease in seconds of now_s(), token); an empty file is nobody's."""
    until_s, _, token = line.decode("ascii").strip().partition(" ")
    return float(until_s or 0), token


def _number(token: str) -> int:
    """Return which of the job's claims it is, the first is 1; 0 is none."""
    return int(token.partition("-")[0] or 0)


class LeaseWatch:
    """The training process's side. A folder without the file is one that no worker fences, such as a test's."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._token = os.environ.get(CLAIM_VARIABLE) or (self._read()[1] if self._path.exists() else None)

    def hold(self) -> None:
        """Return while the lease is held; wait while it has run out. Raises LeaseLost when it is another's."""
        while self._token is not None:
            until_s, token = self._read()
            if token != self._token:
                raise LeaseLost("another worker has claimed the job")
            if now_s() < until_s:
                return
            time.sleep(_LOOK_S)

    def _read(self) -> tuple[float, str]:
        return _parsed(self._path.read_bytes())
