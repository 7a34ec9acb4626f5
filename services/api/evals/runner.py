"""Which api process works on which run of an eval."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

from msgspec.structs import replace

from services.api.ab_runs.run import AbRun, waits
from services.api.evals.run import Run, Tools
from services.api.leftovers import Leftovers
from services.api.long_work import LongWork
from shared.errors import LeaseLost, NotFound, StoreUnavailable, TransitionRefused
from shared.eval_records import EvalRunRecord
from shared.eval_states import ENDED, EvalRunState
from shared.schemas.evals import EvalError

_BROKEN = EvalError(code="server_error", message="An internal error occurred; the server's log has it.")


class EvalRunner(LongWork[EvalRunRecord]):
    one, several, one_id = "eval_run", "eval_runs", "run_id"
    at_once = 16

    def __init__(self, tools: Tools, leftovers: Leftovers, drain: asyncio.Event) -> None:
        super().__init__(tools.leases, leftovers, drain)
        self._tools = tools

    async def _active(self) -> Sequence[str]:
        return await self._tools.runs.active()

    async def _begin(self, idle: Sequence[str]) -> None:
        now = time.monotonic()
        due = await self._tools.runs.read([one for one in idle if not self._turns.rests(one, now)])
        await self._fill_places(due)

    def _is_suspect(self, record: EvalRunRecord) -> bool:
        return record.tries >= 2

    async def _is_away(self, record: EvalRunRecord) -> bool | None:
        """Of judges alone it is not known, nor of models outside. An A/B run waits for the runs that it compares."""
        if record.kind == "ab" and await waits(self._tools.runs, record):
            return True
        if not record.model or self._tools.graders.judges.is_outside(record.model):
            return None
        return await self._tools.answering.is_away("/v1/chat/completions", record.model, record.access)

    async def _work(self, piece_id: str, token: str) -> None:
        try:
            record = await self._tools.runs.get(piece_id)
        except NotFound:
            return
        await (AbRun if record.kind == "ab" else Run)(self._tools, piece_id, token).go()

    async def _survived(self, piece_id: str, token: str) -> None:
        def clear(current: EvalRunRecord) -> EvalRunRecord:
            return current if current.status in ENDED else replace(current, tries=0)

        with suppress(StoreUnavailable, LeaseLost, TransitionRefused, NotFound):
            await self._tools.runs.update(piece_id, clear, fence=token)

    async def _fail(self, piece_id: str, token: str) -> None:
        def fail(current: EvalRunRecord) -> EvalRunRecord:
            return replace(current, status=EvalRunState.FAILED, error=_BROKEN, ended_at=int(time.time()))

        with suppress(StoreUnavailable, LeaseLost, TransitionRefused, NotFound):
            await self._tools.runs.update(piece_id, fail, fence=token)
