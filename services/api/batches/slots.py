"""How many requests of batches are under way at a time, and whose is next."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count


class Slots:
    """`total` slots that projects share: a free one goes to whoever waits and has the fewest.

    Of projects with as many it goes to the one that was served longest ago, and within a project to who came first.
    """

    def __init__(self, total: int) -> None:
        self._free = total
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._turn = count(1)
        self._served: dict[str, int] = {}

    @asynccontextmanager
    async def of(self, project: str) -> AsyncIterator[None]:
        """Hold a slot for a request of a project."""
        if self._free:
            self._give(project)
        else:
            await self._wait(project)
        try:
            yield
        finally:
            self._take_back(project)

    async def _wait(self, project: str) -> None:
        given = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(project, deque()).append(given)
        try:
            await given
        except asyncio.CancelledError:
            if given.done() and not given.cancelled():
                self._take_back(project)
            raise

    def _give(self, project: str) -> None:
        self._free -= 1
        self._held[project] += 1
        self._served[project] = next(self._turn)

    def _take_back(self, project: str) -> None:
        self._free += 1
        self._held[project] -= 1
        if not self._held[project]:
            del self._held[project]
        while self._free and (following := self._next()) is not None:
            given = self._pop(following)
            if not given.done():
                self._give(following)
                given.set_result(None)
        if not self._held and not self._waiting:
            self._served.clear()

    def _next(self) -> str | None:
        return min(self._waiting, key=lambda one: (self._held[one], self._served.get(one, 0)), default=None)

    def _pop(self, project: str) -> asyncio.Future[None]:
        queue = self._waiting[project]
        given = queue.popleft()
        if not queue:
            del self._waiting[project]
        return given
