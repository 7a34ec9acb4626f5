"""What requests of projects have used, gathered here and told to the store every second."""

from __future__ import annotations

import asyncio
from collections import Counter

import structlog

from services.inference.http.observing import NOBODY
from shared.errors import StoreUnavailable
from shared.store.usage import Day, UsageStore, Used, today

log = structlog.get_logger()

TELL_EVERY_S = 1.0


class UsageCounts:
    """Counts since they were last told; a process that is killed loses those of its last second.

    Where the database counts and its reply is lost, what it was told is told again, and counts twice.
    """

    def __init__(self, store: UsageStore) -> None:
        self._store = store
        self._counts: dict[Day, Counter[Used]] = {}

    def note(self, project: str, model: str, *, prompt: int, cached: int, completion: int) -> None:
        """Count a request with its tokens; what no project asked for is not counted."""
        if project == NOBODY:
            return
        counts = self._counts.setdefault(Day(project, today()), Counter())
        counts[Used("requests", model)] += 1
        counts[Used("input_tokens", model)] += prompt
        counts[Used("cached_tokens", model)] += cached
        counts[Used("output_tokens", model)] += completion

    async def run(self) -> None:
        """Tell until cancelled; what could not be told is told later."""
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            await self.tell()

    async def tell(self) -> None:
        """Tell what is counted by now, day by day: what fails in between leaves the days before it told."""
        for day in list(self._counts):
            try:
                await self._tell(day)
            except StoreUnavailable:
                log.warning("usage.not_told", reason="the database does not answer")
                return

    async def _tell(self, day: Day) -> None:
        """Tell a day's counts, also when cancelled in the middle: else nobody knew whether they are to be told again.

        Raises StoreUnavailable, with the counts kept.
        """
        counts = self._counts.pop(day)
        adding = asyncio.create_task(self._store.add({day: counts}))
        try:
            await asyncio.shield(adding)
        finally:
            await asyncio.wait([adding])
            if adding.exception() is not None:
                self._counts.setdefault(day, Counter()).update(counts)
