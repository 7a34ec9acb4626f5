"""Which api process brings which sweep forward: jobs made, watched, evaluated, ranked, the best one kept.

submitting ─ every run gets its job, as many at a time as the project may have
training ── jobs are looked at until all have ended; one that fails is out of the race, the others go on
evaluating ─ with an eval, each model gets its run
ranking ─── values, ranks, and whether the first is better than the second or only luckier
keeping ─── with `keep: "best"`, once the ranks are stored, the models of the runs behind are deleted, except those that
            something stands on
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

import structlog
from msgspec.structs import replace

from services.api.evals.comparison import Comparisons
from services.api.flow_jobs import OVER, REFUSED, WAITING, FlowJobs, lasting
from services.api.flows import FlowRunner
from services.api.leftovers import Leftovers
from services.api.model_deletion import ModelDeletion
from services.api.model_evals import ModelEvals
from services.api.sweeps.grid import job_request
from services.api.sweeps.ranking import NO_VALUE, behind, ranked, runner_up, validation_value
from services.api.sweeps.watching import noted
from shared.errors import InvalidRequest, NotFound, RateLimited
from shared.flow_records import FlowError
from shared.flow_states import FlowState
from shared.schemas.evals import Verdict
from shared.schemas.jobs import CreateJob
from shared.store.flows import FlowStore
from shared.store.leases import LeaseStore
from shared.store.registry import Registry
from shared.sweep_records import SWEEP_ID, SweepRecord, SweepRunRecord

_log = structlog.get_logger()

_MOST_METADATA = 16
_NOBODY = FlowError(code="no_model", message="None of the runs has a model with a value to rank it by; see the runs.")


@dataclass(frozen=True)
class SweepTools:
    """What every sweep needs."""

    jobs: FlowJobs
    registry: Registry
    evals: ModelEvals
    comparisons: Comparisons
    deletion: ModelDeletion


class SweepRunner(FlowRunner[SweepRecord]):
    one, several, one_id = "sweep", "sweeps", "sweep_id"

    def __init__(
        self,
        flows: FlowStore[SweepRecord],
        leases: LeaseStore,
        leftovers: Leftovers,
        drain: asyncio.Event,
        tools: SweepTools,
    ) -> None:
        super().__init__(flows, leases, leftovers, drain)
        self._tools = tools

    async def advance(self, record: SweepRecord) -> SweepRecord:
        """Take the next step; see the module's head."""
        if record.best() is not None:
            return replace(await self._without_others(record), status=FlowState.COMPLETED)
        record = await self._watched(await self._submitted(record))
        if any(run.status not in OVER for run in record.runs):
            return record
        if any(run.model and run.value is None and run.error is None for run in record.runs):
            return await self._valued(record)
        record = ranked(record)
        if record.best() is None:
            return replace(record, status=FlowState.FAILED, error=_NOBODY)
        record = replace(record, lead=await self._lead(record))
        return record if record.keep == "best" else replace(record, status=FlowState.COMPLETED)

    async def clean_up(self, record: SweepRecord) -> None:
        """Stop the jobs and runs of a sweep that did not come to its end."""
        if record.status is FlowState.COMPLETED:
            return
        for run in record.runs:
            await self._tools.jobs.cancel(run.job_id, project=record.project)
            if record.eval is not None:
                await self._tools.evals.cancel(record.eval, run.eval_run_id, project=record.project)

    async def _submitted(self, record: SweepRecord) -> SweepRecord:
        """Make jobs of waiting runs, until the project may have no more at a time."""
        runs = list(record.runs)
        with suppress(RateLimited):
            for place, run in enumerate(runs):
                if run.status != WAITING:
                    continue
                made = await self._tools.jobs.submit(_request(record, run), run.job_id, record)
                if isinstance(made, FlowError):
                    runs[place] = replace(run, status=REFUSED, error=made)
                else:
                    runs[place] = replace(run, status=made.status.value)
        return replace(record, runs=tuple(runs))

    async def _watched(self, record: SweepRecord) -> SweepRecord:
        """Take note of what the jobs have come to; one that has ended is not looked at again."""
        open_ids = [run.job_id for run in record.runs if run.status not in (*OVER, WAITING)]
        return noted(record, await self._tools.jobs.many(open_ids))

    async def _valued(self, record: SweepRecord) -> SweepRecord:
        """Give models their values; those of an eval come one after the other, as many runs as a project may have."""
        runs = list(record.runs)
        with suppress(RateLimited):
            for place, run in enumerate(runs):
                if run.model and run.value is None and run.error is None:
                    runs[place] = await (self._scored(record, run) if record.eval else self._validated(record, run))
        return replace(record, runs=tuple(runs))

    async def _validated(self, record: SweepRecord, run: SweepRunRecord) -> SweepRunRecord:
        jobs = self._tools.jobs.store
        value = await validation_value(jobs, await jobs.get(run.job_id), record.metric)
        return replace(run, error=NO_VALUE) if value is None else replace(run, value=value)

    async def _scored(self, record: SweepRecord, run: SweepRunRecord) -> SweepRunRecord:
        """Put a model through the eval; what goes wrong with it is this run's error."""
        evals, wanted = self._tools.evals, record.eval
        assert wanted is not None
        try:
            scored = await evals.score(wanted, run.eval_run_id, project=record.project)
        except NotFound:
            return await self._begun(record, run)
        if scored is None:
            return run
        return replace(run, value=scored.pass_rate, rows=scored.rows, error=scored.error)

    async def _begun(self, record: SweepRecord, run: SweepRunRecord) -> SweepRunRecord:
        assert record.eval is not None
        name = f"{record.id} {run.job_id}"
        try:
            await self._tools.evals.start(
                record.eval, run.model, run_id=run.eval_run_id, name=name, access=record.access
            )
        except (InvalidRequest, NotFound) as error:
            return replace(run, error=FlowError(code=error.code or "invalid", message=error.message))
        except RateLimited as error:
            if (full := lasting(error)) is None:
                raise
            return replace(run, error=full)
        return run

    async def _lead(self, record: SweepRecord) -> Verdict | None:
        """Compare the best model's run of the eval with the second's."""
        best, second = record.best(), runner_up(record)
        if record.eval is None or best is None or second is None:
            return None
        try:
            compared = await self._tools.comparisons.compare(
                best.eval_run_id, second.eval_run_id, eval_id=record.eval.eval_id, project=record.project
            )
        except (InvalidRequest, NotFound):  # the runs, or their rows' results, are gone
            return None
        return compared.verdict

    async def _without_others(self, record: SweepRecord) -> SweepRecord:
        """Delete the models of the runs behind the best one; what something stands on stays."""
        others = {run.job_id: True for run in behind(record)}
        for model in await self._tools.registry.listed(record.project):
            if model.job_id not in others:
                continue
            try:
                await self._tools.deletion.delete(model)
            except InvalidRequest as error:
                _log.info("sweep.model_kept", model=model.name, reason=error.message)
                others[model.job_id] = False
        runs = [replace(run, is_kept=not others.get(run.job_id, False)) for run in record.runs]
        return replace(record, runs=tuple(runs))


def _request(record: SweepRecord, run: SweepRunRecord) -> CreateJob:
    request = job_request(record.body, record.axes, run.picks)
    metadata = request.metadata or {}
    if len(metadata) < _MOST_METADATA:
        request = replace(request, metadata={**metadata, SWEEP_ID: record.id})
    return request
