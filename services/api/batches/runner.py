"""Which api process works on which batch: a task beside the requests.

A batch belongs to the process that holds its lease. One that stops gives its batches back; those of one that died are
free when their leases have run out.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from contextlib import suppress

import structlog
from msgspec.structs import replace

from services.api.batches.run import Run, Tools
from services.api.draining import pause
from shared.batch_records import BatchRecord
from shared.batch_states import ALLOWED, BatchState
from shared.errors import LeaseLost, StoreUnavailable, TransitionRefused, Unavailable
from shared.schemas.batches import BatchError

_log = structlog.get_logger()

_POLL_S = 0.5
_AT_ONCE = 64
"""Batches that one process works on at a time; they share its requests under way."""
_TIDY_S = 3600.0
"""How often folders of batches that are no more are looked for, and how old such a folder is at least."""


class Runner:
    """Runs until `drain` is set or it is closed."""

    def __init__(self, tools: Tools, drain: asyncio.Event) -> None:
        self._tools = tools
        self._drain = drain
        self._running: dict[str, asyncio.Task[None]] = {}
        self._loop: asyncio.Task[None] | None = None
        self._tidied_at = 0.0

    def start(self) -> None:
        self._loop = asyncio.create_task(self._run())
        self._loop.add_done_callback(_report)

    async def close(self) -> None:
        """Put everything down and give it back; what has been answered is on disk."""
        self._drain.set()
        tasks = [task for task in (self._loop, *self._running.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while not self._drain.is_set():
            try:
                await self._round()
            except StoreUnavailable:
                _log.warning("batches.store_away")
            await pause(self._drain, _POLL_S)

    async def _round(self) -> None:
        """Take up what nobody works on, the oldest first."""
        active = await self._tools.batches.active()
        for batch_id in active:
            if batch_id in self._running or len(self._running) >= _AT_ONCE:
                continue
            token = await self._tools.leases.claim(batch_id)
            if token is not None:
                self._take_up(batch_id, token)
        if time.monotonic() - self._tidied_at > _TIDY_S or not self._tidied_at:
            self._tidied_at = time.monotonic()
            await asyncio.to_thread(self._tidy, frozenset(active), time.time() - _TIDY_S)

    def _take_up(self, batch_id: str, token: str) -> None:
        task = asyncio.create_task(self._hold(batch_id, token))
        self._running[batch_id] = task
        task.add_done_callback(lambda _: self._running.pop(batch_id, None))
        task.add_done_callback(_report)

    async def _hold(self, batch_id: str, token: str) -> None:
        """Work on a batch. After a failure its lease is left to run out, so that it is not tried again at once."""
        log = _log.bind(batch_id=batch_id)
        log.info("batch.taken_up")
        try:
            await Run(self._tools, batch_id, token).go()
        except LeaseLost:
            log.warning("batch.lease_lost")
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

    def _tidy(self, active: frozenset[str], before: float) -> None:
        """Delete folders that their batch did not need any more, or never got to need, when a process died."""
        for folder in self._tools.paths.batches.iterdir():
            with suppress(FileNotFoundError):  # another process was faster
                if folder.name not in active and folder.stat().st_mtime < before:
                    shutil.rmtree(folder, ignore_errors=True)
                    _log.info("batch.tidied", batch_id=folder.name)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("batches.failed", exc_info=error)
