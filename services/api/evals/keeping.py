"""Results of rows on their way to the database: what comes while others are written goes together."""

from __future__ import annotations

import asyncio

import structlog

from shared.errors import StoreUnavailable
from shared.store.eval_runs import Entry, EvalRunStore

_log = structlog.get_logger()

_AGAIN_S = 1.0


class Keeping:
    """Keeps the results of one run for whoever holds its lease, known by `token`."""

    def __init__(self, runs: EvalRunStore, run_id: str, token: str) -> None:
        self._runs = runs
        self._run_id = run_id
        self._token = token
        self._waiting: list[Entry] = []
        self._writing = asyncio.Lock()

    async def keep(self, entry: Entry) -> None:
        """Return when the entry is kept; while the database is away, this waits.

        Raises TransitionRefused when the run is at its end or gone, LeaseLost.
        """
        self._waiting.append(entry)
        async with self._writing:
            if self._waiting:
                group, self._waiting = self._waiting, []
                await self._write(group)

    async def _write(self, group: list[Entry]) -> None:
        while True:
            try:
                await self._runs.keep(self._run_id, group, fence=self._token)
            except StoreUnavailable:  # what came with no answer was kept, or will be: twice is the same as once
                _log.warning("eval_run.store_away", run_id=self._run_id)
                await asyncio.sleep(_AGAIN_S)
            else:
                return
