"""Counts what the models of aliases do: gathered in this process, and added to Redis' twice a second."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import structlog

from services.api.aliases.guard import Guard
from services.api.aliases.tally import bin_of
from services.api.aliases.trip import Outcome
from shared.alias_records import AliasRecord
from shared.errors import StoreUnavailable
from shared.store.alias_traffic import Count, Place, TrafficStore, slot_of

_log = structlog.get_logger()

_PERIOD_S = 0.5


class Counting:
    """What is counted is with Redis half a second later, and after that the limits of its alias are looked at."""

    def __init__(self, store: TrafficStore, guard: Guard) -> None:
        self._store = store
        self._guard = guard
        self._counted: dict[Place, Counter[Count]] = {}
        self._touched: set[tuple[str, str]] = set()
        """Project and name of the aliases that were counted for and have limits."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._flush_forever())

    async def close(self) -> None:
        """Stop, and write what is counted by now."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._flush()

    def count(self, alias: AliasRecord, since: int, model: str, outcome: Outcome, *, timed: bool) -> None:
        """Note how a request to one model of an alias ended; its times only if `timed`."""
        self.add(alias, since, model, outcome.ending)
        if outcome.ending == "answered":
            self.add(alias, since, model, "input_tokens", outcome.usage.input_tokens)
            self.add(alias, since, model, "output_tokens", outcome.usage.output_tokens)
        if outcome.ending == "answered" and timed:
            self.add(alias, since, model, f"total_{bin_of(outcome.total_ms)}")
            if outcome.first_byte_ms is not None:
                self.add(alias, since, model, f"first_{bin_of(outcome.first_byte_ms)}")
        if alias.watch is not None or (alias.canary is not None and alias.canary.limits is not None):
            self._touched.add((alias.project, alias.name))

    def add(self, alias: AliasRecord, since: int, model: str, metric: str, number: int = 1) -> None:
        counts = self._counted.setdefault(Place(alias.uid, slot_of(time.time())), Counter())
        counts[Count(since, metric, model)] += number

    async def _flush_forever(self) -> None:
        while True:
            await asyncio.sleep(_PERIOD_S)
            try:
                await self._flush()
            except Exception:  # noqa: BLE001 - one fault must not end the counting
                _log.error("aliases.not_counted", exc_info=True)

    async def _flush(self) -> None:
        counted, self._counted = self._counted, {}
        try:
            await self._store.add(counted)
        except StoreUnavailable:
            self._take_back(counted)
            _log.warning("aliases.not_counted", reason="the database does not answer")
            return
        touched, self._touched = self._touched, set()
        for project, name in touched:
            await self._check(project, name)

    async def _check(self, project: str, name: str) -> None:
        """Look at one alias's limits; what fails is tried again next time, and keeps no other alias waiting."""
        try:
            await self._guard.check(name, project=project)
        except Exception as error:  # noqa: BLE001 - the others have to be looked at, too
            self._touched.add((project, name))
            is_away = isinstance(error, StoreUnavailable)
            _log.warning("aliases.not_checked", project=project, alias=name, exc_info=None if is_away else error)

    def _take_back(self, counted: dict[Place, Counter[Count]]) -> None:
        for place, counts in counted.items():
            self._counted.setdefault(place, Counter()).update(counts)
