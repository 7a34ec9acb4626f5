"""Which api process works on which batch: a task beside the requests.

A batch belongs to the process that holds its lease. One that stops gives its batches back; those of one that died are
free when their leases have run out. A batch that only waits for a server gives its place to another, projects take
turns for the places, and what is cancelled or late is ended beside them.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog
from msgspec.structs import replace

from services.api.batches.run import Run, Tools
from services.api.batches.turns import Turns, is_over
from services.api.draining import pause
from services.api.leftovers import Leftovers
from shared.batch_records import BatchRecord
from shared.batch_states import ALLOWED, BatchState
from shared.errors import LeaseLost, NoReplica, StoreUnavailable, TransitionRefused, Unavailable
from shared.schemas.batches import BatchError

_log = structlog.get_logger()

_POLL_S = 0.5
_AT_ONCE = 64
"""Batches that one process works on at a time; they share its requests under way."""
_ENDINGS_AT_ONCE = 8
"""Batches beside them that nothing is asked for any more."""


@dataclass(frozen=True)
class _Place:
    task: asyncio.Task[None]
    project: str
    is_ending: bool

    @property
    def counts(self) -> bool:
        """Whether it is one of the places that projects share: not those of batches that end or were interrupted."""
        return not self.is_ending and not self.task.cancelling()


class Runner:
    """Runs until `drain` is set or it is closed."""

    def __init__(self, tools: Tools, leftovers: Leftovers, drain: asyncio.Event) -> None:
        self._tools = tools
        self._leftovers = leftovers
        self._drain = drain
        self._running: dict[str, _Place] = {}
        self._turns = Turns()
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._loop = asyncio.create_task(self._run())
        self._loop.add_done_callback(_report)

    async def close(self) -> None:
        """Put everything down and give it back; what has been answered is on disk."""
        self._drain.set()
        tasks = [task for task in (self._loop, *(place.task for place in self._running.values())) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while not self._drain.is_set():
            try:
                await self._round()
            except StoreUnavailable:
                _log.warning("batches.store_away")
            except Exception as error:  # noqa: BLE001 - the next round may find it mended
                _log.error("batches.round_failed", exc_info=error)
            await pause(self._drain, _POLL_S)

    async def _round(self) -> None:
        """Take up what nobody works on."""
        active = await self._tools.batches.active()
        self._turns.keep_only(frozenset(active))
        waiting = await self._tools.batches.read([one for one in active if one not in self._running])
        now = time.time()
        await self._end_some([record for record in waiting if is_over(record, now)])
        await self._begin_some([record for record in waiting if not is_over(record, now)])
        await self._leftovers.tidy(frozenset(active))

    async def _end_some(self, over: Sequence[BatchRecord]) -> None:
        for record in over:
            if sum(place.is_ending for place in self._running.values()) >= _ENDINGS_AT_ONCE:
                return
            await self._take_up(record, is_ending=True)

    async def _begin_some(self, waiting: Sequence[BatchRecord]) -> None:
        """Fill the places in turn. A project without one gets it from the project that has the most."""
        due = [record for record in waiting if not self._turns.rests(record.id, time.monotonic())]
        for record in self._turns.order(due, self._places()):
            places = self._places()
            is_full = places.total() >= _AT_ONCE
            if is_full and (places[record.project] or max(places.values()) < 2):
                return  # those after it have no better claim
            if self._turns.has_rested(record.id) and await self._would_rest(record, is_full=is_full):
                continue
            if await self._take_up(record) and is_full:
                self._put_down_one_of(max(places, key=lambda project: places[project]))

    def _places(self) -> Counter[str]:
        return Counter(place.project for place in self._running.values() if place.counts)

    async def _would_rest(self, record: BatchRecord, *, is_full: bool) -> bool:
        """Tell whether a batch's model is still away; with several models that is not known before it is tried."""
        if record.model is None:
            return is_full
        if not await self._tools.answering.is_away(record.endpoint, record.model, record.access):
            return False
        self._turns.rest(record.id, time.monotonic())
        return True

    def _put_down_one_of(self, project: str) -> None:
        """Interrupt the batch of a project that was taken up last; it gives itself back, and waits for its turn."""
        batch_id, place = [(one, it) for one, it in self._running.items() if it.counts and it.project == project][-1]
        _log.info("batch.interrupted", batch_id=batch_id, project=project)
        place.task.cancel()

    async def _take_up(self, record: BatchRecord, *, is_ending: bool = False) -> bool:
        """Work on a batch from now on, unless somebody else does."""
        token = await self._tools.leases.claim(record.id)
        if token is None:
            return False
        task = asyncio.create_task(self._hold(record.id, token))
        self._running[record.id] = _Place(task, record.project, is_ending)
        task.add_done_callback(lambda _: self._running.pop(record.id, None))
        task.add_done_callback(_report)
        if not is_ending:
            self._turns.served(record.project)
        return True

    async def _hold(self, batch_id: str, token: str) -> None:
        """Work on a batch. After a failure its lease is left to run out, so that it is not tried again at once."""
        structlog.contextvars.bind_contextvars(batch_id=batch_id)  # of this task, and of those that it starts
        log = _log.bind(batch_id=batch_id)
        log.info("batch.taken_up")
        try:
            await Run(self._tools, batch_id, token).go()
        except LeaseLost:
            log.warning("batch.lease_lost")
        except NoReplica as error:
            log.info("batch.rests", reason=str(error))
            self._turns.rest(batch_id, time.monotonic())
            await self._give_back(batch_id, token)
        except (Unavailable, OSError) as error:
            log.warning("batch.put_down", reason=str(error))
        except asyncio.CancelledError:
            await self._give_back(batch_id, token)
            raise
        except Exception as error:
            log.error("batch.broken", exc_info=error)
            await self._fail(batch_id, token)
        else:
            await self._give_back(batch_id, token)

    async def _give_back(self, batch_id: str, token: str) -> None:
        with suppress(StoreUnavailable):
            await self._tools.leases.release(batch_id, token)

    async def _fail(self, batch_id: str, token: str) -> None:
        """End a batch that this server cannot work on, by a fault of its own, instead of trying for ever."""
        fault = BatchError(code="server_error", message="An internal error occurred; the server's log has it.")

        def fail(current: BatchRecord) -> BatchRecord:
            if BatchState.FAILED not in ALLOWED[current.status]:
                return current
            return replace(current, status=BatchState.FAILED, errors=[fault], failed_at=int(time.time()))

        with suppress(StoreUnavailable, LeaseLost, TransitionRefused):
            await self._tools.batches.update(batch_id, fail, fence=token)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("batches.failed", exc_info=error)
