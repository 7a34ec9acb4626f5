"""Which api process works on which run of an eval: a task beside the requests.

A run belongs to the process that holds its lease. One that stops gives its runs back; those of one that died are free
when their leases have run out. Projects take turns for the places, and a run whose model is away gives its place up.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import suppress

import structlog
from msgspec.structs import replace

from services.api.batches.turns import Turns
from services.api.draining import pause
from services.api.evals.run import Run, Tools
from services.api.leftovers import Leftovers
from shared.errors import LeaseLost, NoReplica, NotFound, StoreUnavailable, TransitionRefused, Unavailable
from shared.eval_records import EvalRunRecord
from shared.eval_states import EvalRunState
from shared.schemas.evals import EvalError

_log = structlog.get_logger()

_POLL_S = 0.5
_AT_ONCE = 16
"""Runs that one process works on at a time; they share its requests under way."""
_BROKEN = EvalError(code="server_error", message="An internal error occurred; the server's log has it.")


class EvalRunner:
    """Runs until `drain` is set or it is closed."""

    def __init__(self, tools: Tools, leftovers: Leftovers, drain: asyncio.Event) -> None:
        self._tools = tools
        self._leftovers = leftovers
        self._drain = drain
        self._running: dict[str, tuple[asyncio.Task[None], str]] = {}
        """By run its task and its project."""
        self._turns = Turns()
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._loop = asyncio.create_task(self._run())
        self._loop.add_done_callback(_report)

    async def close(self) -> None:
        """Put everything down and give it back; what has been paid for is kept."""
        self._drain.set()
        tasks = [task for task in (self._loop, *(task for task, _ in self._running.values())) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while not self._drain.is_set():
            try:
                await self._round()
            except StoreUnavailable:
                _log.warning("eval_runs.store_away")
            await pause(self._drain, _POLL_S)

    async def _round(self) -> None:
        """Take up what nobody works on."""
        active = await self._tools.runs.active()
        self._turns.keep_only(frozenset(active))
        now = time.monotonic()
        waiting = [one for one in active if one not in self._running and not self._turns.rests(one, now)]
        held = Counter(project for _, project in self._running.values())
        for record in self._turns.order(await self._tools.runs.read(waiting), held):
            if len(self._running) >= _AT_ONCE:
                break
            await self._take_up(record)
        await self._leftovers.tidy(frozenset(active))

    async def _take_up(self, record: EvalRunRecord) -> None:
        """Work on a run from now on, unless somebody else does."""
        token = await self._tools.leases.claim(record.id)
        if token is None:
            return
        task = asyncio.create_task(self._hold(record.id, token))
        self._running[record.id] = (task, record.project)
        task.add_done_callback(lambda _: self._running.pop(record.id, None))
        task.add_done_callback(_report)
        self._turns.served(record.project)

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
        except asyncio.CancelledError:
            await self._give_back(run_id, token)
            raise
        except Exception as error:  # noqa: BLE001 - ends this run, not the others
            _log.error("eval_run.broken", exc_info=error)
            await self._fail(run_id, token)
        else:
            await self._give_back(run_id, token)

    async def _give_back(self, run_id: str, token: str) -> None:
        with suppress(StoreUnavailable):
            await self._tools.leases.release(run_id, token)

    async def _fail(self, run_id: str, token: str) -> None:
        """End a run that this server cannot work on, by a fault of its own, instead of trying for ever."""

        def fail(current: EvalRunRecord) -> EvalRunRecord:
            return replace(current, status=EvalRunState.FAILED, error=_BROKEN, ended_at=int(time.time()))

        with suppress(StoreUnavailable, LeaseLost, TransitionRefused, NotFound):
            await self._tools.runs.update(run_id, fail, fence=token)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("eval_runs.failed", exc_info=error)
