"""A promotion from where it is to its end: runs of the gate's eval, their figures, and what follows for the alias."""

from __future__ import annotations

import asyncio
import time

import msgspec
from msgspec.structs import replace

from services.api.aliases.gated_moves import GatedMoves
from services.api.aliases.gates import figures_of, has_least_pass_rate, judged
from services.api.aliases.rechecks import Rechecks
from services.api.evals.creation import EvalRuns
from services.api.flows import FlowFailed, FlowRunner
from services.api.leftovers import Leftovers
from shared import ids
from shared.alias_records import AliasRecord
from shared.errors import NotFound
from shared.eval_records import EvalRunRecord
from shared.eval_states import ENDED, EvalRunState
from shared.flow_states import FlowState
from shared.promotion_records import GateRun, PromotionRecord, asked_of
from shared.schemas.evals import CreateEvalRun
from shared.store.eval_runs import EvalRunStore
from shared.store.flows import FlowStore
from shared.store.gate_runs import GateRunStore
from shared.store.leases import LeaseStore

_PASSED = ord("p")


class PromotionRunner(FlowRunner[PromotionRecord]):
    """Brings promotions forward, and rechecks of models that aliases point to."""

    one, several, one_id = "promotion", "promotions", "promotion_id"

    def __init__(
        self,
        flows: FlowStore[PromotionRecord],
        leases: LeaseStore,
        leftovers: Leftovers,
        drain: asyncio.Event,
        *,
        moves: GatedMoves,
        eval_runs: EvalRuns,
        run_store: EvalRunStore,
        gate_runs: GateRunStore,
        rechecks: Rechecks,
    ) -> None:
        super().__init__(flows, leases, leftovers, drain)
        self._moves = moves
        self._eval_runs = eval_runs
        self._run_store = run_store
        self._gate_runs = gate_runs
        self._rechecks = rechecks

    async def advance(self, record: PromotionRecord) -> PromotionRecord:
        if not record.eval_run_id:
            return await self._planned(record)
        if not record.are_begun:
            return await self._begun(record)
        if record.figures is None:
            runs = [await self._run_of(one, record) for one in record.run_ids]
            return await self._judged(record, runs) if all(run.status in ENDED for run in runs) else record
        return await self._ended(record)

    async def clean_up(self, record: PromotionRecord) -> None:
        if record.status is not FlowState.COMPLETED:
            for run_id in record.run_ids:
                await self._stop(run_id, record)
        await self._rechecks.forget_old(record)
        try:
            await self._moves.alias_of(record)
        except FlowFailed:  # the alias was deleted while this began: nobody can name it any more
            await self._flows.remove(record)

    async def _planned(self, record: PromotionRecord) -> PromotionRecord:
        """Choose the runs: those of before as far as they are fresh, else the ids of new ones."""
        alias = await self._moves.alias_of(record)
        if record.kind == "recheck":
            before = await self._passed(alias, record)
            return replace(record, eval_run_id=ids.new_eval_run_id(), current_run_id=before)
        run_id = await self._fresh(alias, record, record.model) or ids.new_eval_run_id()
        current = ""
        if record.gate.criteria.against_current is not None and record.model != record.current:
            current = await self._fresh(alias, record, record.current) or ids.new_eval_run_id()
        return replace(record, eval_run_id=run_id, current_run_id=current)

    async def _fresh(self, alias: AliasRecord, record: PromotionRecord, model: str) -> str:
        """Return the run of a model that the gate saw last, if it is no older than the gate says, and of use; ""."""
        seen = await self._seen(alias, record, model)
        run = await self._whole(seen.run_id, record) if seen is not None else None
        return run.id if run is not None and time.time() < run.created_at + record.gate.fresh_hours * 3600 else ""

    async def _passed(self, alias: AliasRecord, record: PromotionRecord) -> str:
        """Return the run with which a model that is looked at again had passed, whatever was seen since; ""."""
        seen = await self._seen(alias, record, record.model)
        run = await self._whole(seen.passed_run_id, record) if seen is not None and seen.passed_run_id else None
        return "" if run is None else run.id

    async def _seen(self, alias: AliasRecord, record: PromotionRecord, model: str) -> GateRun | None:
        """Return what the gate saw last of a model, if that was asked the same."""
        seen = await self._gate_runs.find(alias.uid, model)
        return seen if seen is not None and seen.asked == asked_of(record.gate) else None

    async def _whole(self, run_id: str, record: PromotionRecord) -> EvalRunRecord | None:
        """Return a run if all its results are there."""
        try:
            run = await self._run_of(run_id, record)
        except NotFound:
            return None
        is_whole = run.status is EvalRunState.COMPLETED and len(await self._run_store.marks(run.id)) == run.rows
        return run if is_whole else None

    async def _begun(self, record: PromotionRecord) -> PromotionRecord:
        """Create the runs that are not there. Raises what creating a run raises."""
        models = (record.model, record.current)
        for run_id, model in zip((record.eval_run_id, record.current_run_id), models, strict=True):
            if run_id:
                source = record.gate.data_source.asking(model)
                wanted = CreateEvalRun(data_source=source, name=f"gate of {record.alias}: {model}"[:256])
                await self._eval_runs.create(
                    wanted,
                    msgspec.json.encode(source),
                    eval_id=record.gate.eval_id,
                    access=record.access,
                    run_id=run_id,
                )
        return replace(record, are_begun=True)

    async def _judged(self, record: PromotionRecord, runs: list[EvalRunRecord]) -> PromotionRecord:
        alias = await self._moves.alias_of(record)
        passes = [await self._passes(run) for run in runs]
        here, other = passes[0], passes[1] if len(passes) > 1 else None
        if other is not None and len(other) != len(here):
            raise FlowFailed("nothing_to_compare", "The runs have not the same rows.")
        figures = figures_of(here, other)
        has_passed, message = judged(record, figures)
        seen = _seen_in(record, record.model, runs[0], has_passed=has_passed)
        if has_passed and (record.kind == "promotion" or other is None):
            seen = replace(seen, passed_run_id=seen.run_id)
        await self._gate_runs.note(alias, seen)
        if other is not None and record.kind == "promotion":
            is_good = has_least_pass_rate(record.gate, other)
            compared = _seen_in(record, record.current, runs[1], has_passed=is_good)
            await self._gate_runs.note(alias, compared, rejudges=False)
        return replace(record, figures=figures, has_passed=has_passed, message=message)

    async def _ended(self, record: PromotionRecord) -> PromotionRecord:
        message = record.message
        if record.kind == "promotion":
            outcome = await self._moves.promote(record) if record.has_passed else "refused"
        elif record.has_passed:
            outcome = "passed"
        else:
            outcome, message = await self._moves.roll_back(record)
        return replace(record, status=FlowState.COMPLETED, outcome=outcome, message=message)

    async def _run_of(self, run_id: str, record: PromotionRecord) -> EvalRunRecord:
        return await self._run_store.find_record(run_id, eval_id=record.gate.eval_id, project=record.project)

    async def _passes(self, run: EvalRunRecord) -> list[bool]:
        """Tell of each row whether it passed; one with an error has not. Raises FlowFailed for runs without results."""
        if run.status is not EvalRunState.COMPLETED:
            why = run.error.message or "it was canceled"
            raise FlowFailed("eval_run_failed", f"The run '{run.id}' of '{run.model}' has no result: {why}")
        marks = await self._run_store.marks(run.id)
        if not run.rows or len(marks) != run.rows:
            raise FlowFailed("eval_run_expired", f"The results of the run '{run.id}' are not kept any more.")
        return [mark == _PASSED for mark in marks]

    async def _stop(self, run_id: str, record: PromotionRecord) -> None:
        """Cancel a run that this has begun and nobody waits for any more; one that has ended stays as it is."""
        try:
            run = await self._run_of(run_id, record)
        except NotFound:
            return
        if run.status not in ENDED:
            await self._eval_runs.cancel(run_id, eval_id=record.gate.eval_id, project=record.project)


def _seen_in(record: PromotionRecord, model: str, run: EvalRunRecord, *, has_passed: bool) -> GateRun:
    at = run.ended_at or run.created_at
    return GateRun(model=model, run_id=run.id, asked=asked_of(record.gate), at=at, has_passed=has_passed)
