"""Which api process works on which batch; what is cancelled or late is ended beside those that are answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

from msgspec.structs import replace

from services.api.batches.run import Run, Tools, is_over
from services.api.leftovers import Leftovers
from services.api.long_work import LongWork
from shared.batch_records import BatchRecord
from shared.batch_states import ALLOWED, BatchState
from shared.errors import LeaseLost, StoreUnavailable, TransitionRefused
from shared.schemas.batches import BatchError

_ENDINGS_AT_ONCE = 8
"""Batches beside those at work that nothing is asked for any more."""


class Runner(LongWork[BatchRecord]):
    one, several, one_id = "batch", "batches", "batch_id"
    at_once = 64

    def __init__(self, tools: Tools, leftovers: Leftovers, drain: asyncio.Event) -> None:
        super().__init__(tools.leases, leftovers, drain)
        self._tools = tools

    async def _active(self) -> Sequence[str]:
        return await self._tools.batches.active()

    async def _begin(self, idle: Sequence[str]) -> None:
        waiting = await self._tools.batches.read(idle)
        now = time.time()
        await self._end_some([record for record in waiting if is_over(record, now)])
        due = [record for record in waiting if not is_over(record, now)]
        await self._fill_places([record for record in due if not self._turns.rests(record.id, time.monotonic())])

    async def _end_some(self, over: Sequence[BatchRecord]) -> None:
        for record in over:
            if sum(place.is_extra for place in self._running.values()) >= _ENDINGS_AT_ONCE:
                return
            await self._take_up(record, is_extra=True)

    async def _is_away(self, record: BatchRecord) -> bool | None:
        """Of several models it is not known."""
        if record.model is None:
            return None
        return await self._tools.answering.is_away(record.endpoint, record.model, record.access)

    async def _work(self, piece_id: str, token: str) -> None:
        await Run(self._tools, piece_id, token).go()

    async def _fail(self, piece_id: str, token: str) -> None:
        fault = BatchError(code="server_error", message="An internal error occurred; the server's log has it.")

        def fail(current: BatchRecord) -> BatchRecord:
            if BatchState.FAILED not in ALLOWED[current.status]:
                return current
            return replace(current, status=BatchState.FAILED, errors=[fault], failed_at=int(time.time()))

        with suppress(StoreUnavailable, LeaseLost, TransitionRefused):
            await self._tools.batches.update(piece_id, fail, fence=token)
