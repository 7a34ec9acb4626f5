"""Which api process works on which run of an eval: a task beside the requests.

A run belongs to the process that holds its lease. One that stops gives its runs back; those of one that died are free
when their leases have run out. Projects take turns for the places: one without a place gets it from the project that
has the most, and a run whose model is away gives its place up.
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

from services.api.batches.turns import Turns
from services.api.draining import pause
from services.api.evals.run import Run, Tools
from services.api.leftovers import Leftovers
from shared.errors import LeaseLost, NoReplica, NotFound, StoreUnavailable, TransitionRefused, Unavailable
from shared.eval_records import EvalRunRecord
from shared.eval_states import ENDED, EvalRunState
from shared.schemas.evals import EvalError

_log = structlog.get_logger()

_POLL_S = 0.5
_AT_ONCE = 16
"""Runs that one process works on at a time; they share its requests under way."""
_BROKEN = EvalError(code="server_error", message="An internal error occurred; the server's log has it.")


@dataclass(frozen=True)
class _Place:
    task: asyncio.Task[None]
    project: str
    is_suspect: bool

    @property
    def counts(self) -> bool:
        """Whether it is one of the places that projects share: not one that was interrupted."""
        return not self.task.cancelling()


class EvalRunner:
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
        """Put everything down and give it back; what has been paid for is kept."""
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
                _log.warning("eval_runs.store_away")
            except Exception as error:  # noqa: BLE001 - the next round may find it mended
                _log.error("eval_runs.round_failed", exc_info=error)
            await pause(self._drain, _POLL_S)

    async def _round(self) -> None:
        """Take up what nobody works on."""
        active = await self._tools.runs.active()
        self._turns.keep_only(frozenset(active))
        now = time.monotonic()
        due = [one for one in active if one not in self._running and not self._turns.rests(one, now)]
        await self._begin_some(await self._tools.runs.read(due))
        await self._leftovers.tidy(frozenset(active))

    async def _begin_some(self, due: Sequence[EvalRunRecord]) -> None:
        """Fill the places in turn. A project without one gets it from the project that has the most."""
        for record in self._turns.order(due, self._places()):
            places = self._places()
            is_full = places.total() >= _AT_ONCE
            if is_full and (places[record.project] or max(places.values()) < 2):
                return  # those after it have no better claim
            if _is_suspect(record) and any(place.is_suspect for place in self._running.values()):
                continue
            if self._turns.has_rested(record.id) and await self._would_rest(record, is_full=is_full):
                continue
            if await self._take_up(record) and is_full:
                self._put_down_one_of(max(places, key=lambda project: places[project]))

    def _places(self) -> Counter[str]:
        return Counter(place.project for place in self._running.values() if place.counts)

    async def _would_rest(self, record: EvalRunRecord, *, is_full: bool) -> bool:
        """Tell whether a run's model is still away; of judges alone that is not known before they are asked."""
        if not record.model:
            return is_full
        if not await self._tools.answering.is_away("/v1/chat/completions", record.model, record.access):
            return False
        self._turns.rest(record.id, time.monotonic())
        return True

    def _put_down_one_of(self, project: str) -> None:
        """Interrupt the run of a project that was taken up last; it gives itself back, and waits for its turn."""
        run_id, place = [(one, it) for one, it in self._running.items() if it.counts and it.project == project][-1]
        _log.info("eval_run.interrupted", run_id=run_id, project=project)
        place.task.cancel()

    async def _take_up(self, record: EvalRunRecord) -> bool:
        """Work on a run from now on, unless somebody else does."""
        token = await self._tools.leases.claim(record.id)
        if token is None:
            return False
        task = asyncio.create_task(self._hold(record.id, token))
        self._running[record.id] = _Place(task, record.project, _is_suspect(record))
        task.add_done_callback(lambda _: self._running.pop(record.id, None))
        task.add_done_callback(_report)
        self._turns.served(record.project)
        return True

    async def _hold(self, run_id: str, token: str) -> None:
        """Work on a run. After a failure its lease is left to run out, so that it is not tried again at once."""
        structlog.contextvars.bind_contextvars(run_id=run_id)  # of this task, and of those that it starts
        try:
            await Run(self._tools, run_id, token).go()
        except LeaseLost:
            _log.warning("eval_run.lease_lost")
        except NoReplica as error:
            _log.info("eval_run.rests", reason=str(error))
            self._turns.rest(run_id, time.monotonic())
            await self._give_back(run_id, token)
        except (Unavailable, OSError) as error:
            _log.warning("eval_run.put_down", reason=str(error))
            await self._not_its_fault(run_id, token)
        except asyncio.CancelledError:
            await self._give_back(run_id, token)
            raise
        except Exception as error:  # noqa: BLE001 - ends this run, not the others
            _log.error("eval_run.broken", exc_info=error)
            await self._fail(run_id, token)
        else:
            await self._give_back(run_id, token)

    async def _give_back(self, run_id: str, token: str) -> None:
        await self._not_its_fault(run_id, token)
        with suppress(StoreUnavailable):
            await self._tools.leases.release(run_id, token)

    async def _not_its_fault(self, run_id: str, token: str) -> None:
        """Note that this process has lived through the run."""

        def clear(current: EvalRunRecord) -> EvalRunRecord:
            return current if current.status in ENDED else replace(current, tries=0)

        with suppress(StoreUnavailable, LeaseLost, TransitionRefused, NotFound):
            await self._tools.runs.update(run_id, clear, fence=token)

    async def _fail(self, run_id: str, token: str) -> None:
        """End a run that this server cannot work on, by a fault of its own, instead of trying for ever."""

        def fail(current: EvalRunRecord) -> EvalRunRecord:
            return replace(current, status=EvalRunState.FAILED, error=_BROKEN, ended_at=int(time.time()))

        with suppress(StoreUnavailable, LeaseLost, TransitionRefused, NotFound):
            await self._tools.runs.update(run_id, fail, fence=token)


def _is_suspect(record: EvalRunRecord) -> bool:
    """Tell whether processes died over the run; such runs are tried one by one, since others died along with one."""
    return record.tries >= 2


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("eval_runs.failed", exc_info=error)
