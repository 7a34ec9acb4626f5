"""One run for many callers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class SingleFlight:
    """Runs a piece of work once per key while it is under way, and gives its outcome to everybody who asked."""

    def __init__(self) -> None:
        self._running: dict[int, asyncio.Task[None]] = {}

    async def run(self, key: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Join the run under `key`, or start it. A caller that is cancelled does not stop it for the others."""
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(work())
            self._running[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))
        await asyncio.shield(task)

    def _forget(self, key: int, task: asyncio.Task[None]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # marks it as seen when every caller has gone away
