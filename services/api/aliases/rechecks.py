"""Looking again at the models that aliases with a gate point to, and forgetting what was seen long ago."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import structlog

from services.api.evals.creation import EvalRuns
from shared.alias_records import AliasRecord
from shared.errors import NotFound, RateLimited
from shared.flow_states import ENDED
from shared.promotion_records import PromotionRecord, asked_of
from shared.store.flows import FlowStore
from shared.store.gate_runs import GateRunStore

_log = structlog.get_logger()

KEPT = 20
"""Rechecks of one alias that are kept with their runs, beside those under way."""
KEPT_PROMOTIONS = 100
"""Promotions of one alias that are kept, beside those under way; their runs stay among those of the eval."""
_AT_ONCE = 100


class Rechecks:
    """Begins a recheck when the last look at an alias's model is as long ago as its gate says."""

    def __init__(self, flows: FlowStore[PromotionRecord], runs: GateRunStore, eval_runs: EvalRuns) -> None:
        self._flows = flows
        self._runs = runs
        self._eval_runs = eval_runs

    async def begin_if_due(self, alias: AliasRecord, now: float) -> None:
        """Begin one, whoever asks and how often, unless another of the alias is under way.

        One that failed is begun again after as long as from look to look.
        """
        if alias.gate is None or alias.gate.recheck_hours is None or alias.gate_set is None:
            return
        seen = await self._runs.find(alias.uid, alias.target)
        is_same = seen is not None and seen.asked == asked_of(alias.gate)
        last = max(alias.moved_at, alias.gate_set.at, seen.at if seen is not None and is_same else 0)
        periods = int((now - last) // (alias.gate.recheck_hours * 3600))
        if periods < 1:
            return
        record = PromotionRecord(
            id=_id_of(alias, last, periods),
            project=alias.project,
            created_at=int(time.time()),
            key_id=alias.gate_set.key_id,
            is_admin=alias.gate_set.is_admin,
            kind="recheck",
            alias=alias.name,
            alias_uid=alias.uid,
            model=alias.target,
            current=alias.target,
            gate=alias.gate,
        )
        with suppress(NotFound):
            await self._flows.get(record.id)
            return
        if await self._is_under_way(alias.uid):
            return
        try:
            await self._flows.create(record)
        except RateLimited as error:
            _log.warning("recheck.not_begun", alias=alias.name, reason=error.message)
        else:
            _log.info("recheck.begun", alias=alias.name, model=alias.target, promotion_id=record.id)

    async def of_alias(self, uid: str, project: str) -> AsyncIterator[PromotionRecord]:
        """Yield the promotions and rechecks of an alias, newest first."""
        after, more = None, True
        while more:
            page, more = await self._flows.list(project, after=after, limit=_AT_ONCE)
            for record in page:
                if record.alias_uid == uid:
                    yield record
            if not page:
                return
            after = page[-1].id

    async def forget_old(self, newest: PromotionRecord) -> None:
        """Delete ended rechecks of an alias, and their runs, but for the last KEPT and what its gate goes by.

        Of promotions the last KEPT_PROMOTIONS stay.
        """
        uid, project = newest.alias_uid, newest.project
        needed = {run for seen in (await self._runs.all(uid)).values() for run in (seen.run_id, seen.passed_run_id)}
        ended = [one async for one in self.of_alias(uid, project) if one.status in ENDED]
        rechecks = [one for one in ended if one.kind == "recheck"]
        for record in [one for one in rechecks[KEPT:] if not one.eval_run_id or one.eval_run_id not in needed]:
            if record.eval_run_id:
                with suppress(NotFound):
                    await self._eval_runs.delete(record.eval_run_id, eval_id=record.gate.eval_id, project=project)
            await self._flows.remove(record)
        for record in [one for one in ended if one.kind == "promotion"][KEPT_PROMOTIONS:]:
            await self._flows.remove(record)

    async def _is_under_way(self, uid: str) -> bool:
        active = await self._flows.read(await self._flows.active())
        return any(one.alias_uid == uid and one.kind == "recheck" for one in active)


def _id_of(alias: AliasRecord, last: int, periods: int) -> str:
    """Return the same id for the same look at the same model."""
    told = f"{alias.uid} {alias.target} {last} {periods}"
    return f"promotion_{hashlib.sha256(told.encode()).hexdigest()[:24]}"
