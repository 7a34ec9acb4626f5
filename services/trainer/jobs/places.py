"""Who may train on this worker's device now: one job, or several on one base where they may share a process."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Literal


class Places:
    """`together` places for jobs with the same key; nobody overtakes a job that waits, whatever its key."""

    def __init__(self, together: int) -> None:
        self._together = together
        self._waiting: deque[object] = deque()
        self._key: str | None = None
        self._taken = 0
        self._changed = asyncio.Condition()

    async def enter(self, key: str | None) -> Literal[True]:
        """Wait for a place, and hold it until `leave`. None as a key wants to be alone."""
        ticket = object()
        self._waiting.append(ticket)
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self._waiting[0] is ticket and self._is_free(key))
        except BaseException:
            self._waiting.remove(ticket)
            await self._tell()
            raise
        self._waiting.popleft()
        self._key = key
        self._taken += 1
        await self._tell()
        return True

    async def leave(self) -> None:
        """Give a place back."""
        self._taken -= 1
        await self._tell()

    def _is_free(self, key: str | None) -> bool:
        return self._taken == 0 or (key is not None and key == self._key and self._taken < self._together)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
