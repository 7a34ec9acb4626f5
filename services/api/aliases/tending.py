"""What is done for aliases now and then, be there requests or not: by one api process, which holds a lock.

Rechecks of gates begin, sampled answers are graded and compared. What takes long for one
alias keeps neither others waiting nor what else there is to do for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import structlog

from services.api.draining import pause
from shared import keys
from shared.alias_records import AliasRecord
from shared.errors import StoreUnavailable
from shared.store.aliases import AliasStore
from shared.store.client import Client
from shared.store.lock import Lock

_log = structlog.get_logger()

_LOCK_TTL_S = 30.0
_PERIOD_S = 1.0
_AT_ONCE = 8
"""Aliases of each tender."""

Tender = Callable[[AliasRecord, float], Awaitable[None]]
"""Does what is due for an alias at a Unix time; called again and again."""


class Tending:
    """Runs until `drain` is set or it is closed."""

    def __init__(self, client: Client, aliases: AliasStore, tenders: Sequence[Tender], drain: asyncio.Event) -> None:
        self._lock = Lock(client, keys.TENDING_LOCK, ttl_s=_LOCK_TTL_S)
        self._aliases = aliases
        self._tenders = tenders
        self._drain = drain
        self._places = [asyncio.Semaphore(_AT_ONCE) for _ in tenders]
        self._running: dict[tuple[str, str, int], asyncio.Task[None]] = {}
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._loop = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Put down what is under way; another process goes on with it."""
        self._drain.set()
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        await self._put_down()
        with suppress(StoreUnavailable):
            await self._lock.release()

    async def _run(self) -> None:
        while not self._drain.is_set():
            try:
                await self._round()
            except StoreUnavailable:
                _log.warning("tending.store_away")
                await self._put_down()
            except Exception as error:  # noqa: BLE001 - the next round may find it mended
                _log.error("tending.round_failed", exc_info=error)
            await pause(self._drain, _PERIOD_S)

    async def _round(self) -> None:
        if not await self._lock.hold():
            await self._put_down()
            return
        self._running = {place: task for place, task in self._running.items() if not task.done()}
        for project, name in await self._aliases.tended():
            for number in range(len(self._tenders)):
                place = (project, name, number)
                if place not in self._running:
                    self._running[place] = asyncio.create_task(self._tend(*place))

    async def _tend(self, project: str, name: str, number: int) -> None:
        async with self._places[number]:
            try:
                record = await self._aliases.find(name, project=project)
                if record is not None:
                    await self._tenders[number](record, time.time())
            except StoreUnavailable:
                _log.warning("tending.store_away", alias=name)
            except Exception as error:  # noqa: BLE001 - the others have to be tended, too
                _log.error("tending.failed", project=project, alias=name, exc_info=error)

    async def _put_down(self) -> None:
        tasks = [*self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
