"""Which api process brings which replay forward: every row by itself, until each has a verdict or an error.

waiting ──── the model's job is looked up, and made again on the new base
(a job's) ── the new job is looked at until it has ended
evaluating ─ champion and challenger have a run of the eval each, at the same time
compared ─── the runs beside each other, with the statistics of the comparison of runs
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from msgspec.structs import replace

from services.api.evals.comparison import Comparisons
from services.api.flow_jobs import OVER, WAITING, FlowJobs, failure_of, lasting
from services.api.flows import FlowRunner
from services.api.leftovers import Leftovers
from services.api.model_evals import ModelEvals, Scored
from services.api.replays.manifest import Manifests
from shared.errors import InvalidRequest, NotFound, RateLimited
from shared.flow_records import FlowError
from shared.flow_states import FlowState
from shared.records import JobRecord
from shared.replay_records import ReplayRecord, ReplayRowRecord
from shared.states import JobState
from shared.store.flows import FlowStore
from shared.store.leases import LeaseStore

_EVALUATING, _COMPARED, _FAILED = "evaluating", "compared", "failed"
_NOBODY = FlowError(code="no_challenger", message="None of the models was compared with a challenger; see the rows.")


@dataclass(frozen=True)
class ReplayTools:
    """What every replay needs."""

    jobs: FlowJobs
    manifests: Manifests
    evals: ModelEvals
    comparisons: Comparisons


class ReplayRunner(FlowRunner[ReplayRecord]):
    one, several, one_id = "replay", "replays", "replay_id"

    def __init__(
        self,
        flows: FlowStore[ReplayRecord],
        leases: LeaseStore,
        leftovers: Leftovers,
        drain: asyncio.Event,
        tools: ReplayTools,
    ) -> None:
        super().__init__(flows, leases, leftovers, drain)
        self._tools = tools

    async def advance(self, record: ReplayRecord) -> ReplayRecord:
        """Bring every row a step further; what one has to wait for keeps no other waiting."""
        jobs = await self._tools.jobs.many([row.job_id for row in record.rows if row.has_job and not row.challenger])
        rows = [await self._row(record, row, jobs.get(row.job_id)) for row in record.rows]
        record = replace(record, rows=tuple(rows))
        if not all(row.is_over for row in rows):
            return record
        if all(row.error is not None for row in rows):
            return replace(record, status=FlowState.FAILED, error=_NOBODY)
        return replace(record, status=FlowState.COMPLETED)

    async def clean_up(self, record: ReplayRecord) -> None:
        """Stop the jobs and runs of rows that have no verdict."""
        for row in record.rows:
            if row.verdict is not None:
                continue
            await self._tools.jobs.cancel(row.job_id, project=record.project)
            for run_id in (row.champion_run_id, row.challenger_run_id):
                await self._tools.evals.cancel(record.eval, run_id, project=record.project)

    async def _row(self, record: ReplayRecord, row: ReplayRowRecord, job: JobRecord | None) -> ReplayRowRecord:
        """Take a row's next step; what it meets is its own error. A limit of the project is waited for."""
        if row.is_over:
            return row
        try:
            if row.status == WAITING:
                return await self._submitted(record, row)
            if row.challenger:
                return await self._evaluated(record, row)
            return row if job is None else _noted(row, job)
        except RateLimited as error:
            full = lasting(error)
            return row if full is None else _failed(row, full)
        except (InvalidRequest, NotFound) as error:
            return _failed(row, FlowError(code=error.code or "invalid_request", message=error.message))

    async def _submitted(self, record: ReplayRecord, row: ReplayRowRecord) -> ReplayRowRecord:
        manifest = await self._tools.manifests.of(row.model, record)
        row = replace(row, replayed_job_id=manifest.job_id, remarks=manifest.remarks)
        made = await self._tools.jobs.submit(manifest.request, row.job_id, record)
        if isinstance(made, FlowError):
            return _failed(row, made)
        return replace(row, status=made.status.value, has_job=True)

    async def _evaluated(self, record: ReplayRecord, row: ReplayRowRecord) -> ReplayRowRecord:
        champion = await self._scored(record, row.model, row.champion_run_id)
        challenger = await self._scored(record, row.challenger, row.challenger_run_id)
        if champion is not None:
            row = replace(row, champion_pass_rate=champion.pass_rate, champion_rows=champion.rows)
        if challenger is not None:
            row = replace(row, challenger_pass_rate=challenger.pass_rate, challenger_rows=challenger.rows)
        for scored in (champion, challenger):
            if scored is not None and scored.error is not None:
                return _failed(row, scored.error)
        if champion is None or challenger is None:
            return row
        compared = await self._tools.comparisons.compare(
            row.challenger_run_id, row.champion_run_id, eval_id=record.eval.eval_id, project=record.project
        )
        return replace(row, status=_COMPARED, verdict=compared.verdict, passing=compared.passing)

    async def _scored(self, record: ReplayRecord, model: str, run_id: str) -> Scored | None:
        """Return what came of a model's run, which is begun where there is none; None while it is under way."""
        try:
            return await self._tools.evals.score(record.eval, run_id, project=record.project)
        except NotFound:
            name = f"{record.id} {model}"
            await self._tools.evals.start(record.eval, model, run_id=run_id, name=name, access=record.access)
            return None


def _noted(row: ReplayRowRecord, job: JobRecord) -> ReplayRowRecord:
    if job.status is JobState.SUCCEEDED:
        return replace(row, status=_EVALUATING, challenger=job.fine_tuned_model or "")
    if job.status.value in OVER:
        fallback = FlowError(code="job_ended", message=f"The job {job.id} was {job.status.value}.")
        return _failed(row, failure_of(job) or fallback)
    return replace(row, status=job.status.value)


def _failed(row: ReplayRowRecord, error: FlowError) -> ReplayRowRecord:
    return replace(row, status=_FAILED, error=error)
