"""Taking sweeps in, showing, stopping and deleting them: what their owner may do."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
from msgspec.structs import asdict

from services.api import scopes
from services.api.flow_jobs import FlowJobs
from services.api.flows import canceled
from services.api.jobs.requests import asked
from services.api.jobs.submission import Submission
from services.api.model_evals import ModelEvals
from services.api.sweeps.grid import (
    Body,
    check_size,
    check_values,
    chosen,
    find_axes,
    grid_size,
    job_request,
    without_lists,
)
from services.api.sweeps.ranking import incomparable
from services.api.sweeps.watching import noted
from shared import ids
from shared.errors import InvalidRequest, NotFound, TransitionRefused
from shared.flow_states import ENDED
from shared.records import KeyRecord
from shared.schemas.jobs import CreateJob
from shared.schemas.sweeps import CreateSweep, MetricName, Sweep
from shared.store.flows import FlowStore
from shared.sweep_records import SweepAxis, SweepRecord, SweepRunRecord

_log = structlog.get_logger()


class Sweeps:
    """Creates, shows, cancels and deletes sweeps; the record says what is wanted, and the runner follows it.

    `stop` ends what a sweep that has ended has under way.
    """

    def __init__(
        self,
        sweeps: FlowStore[SweepRecord],
        submission: Submission,
        evals: ModelEvals,
        jobs: FlowJobs,
        stop: Callable[[SweepRecord], Awaitable[None]],
    ) -> None:
        self._sweeps = sweeps
        self._submission = submission
        self._evals = evals
        self._jobs = jobs
        self._stop = stop

    async def create(self, wanted: CreateSweep, *, caller: KeyRecord, sweep_id: str) -> SweepRecord:
        """Record a sweep whose every run could be a job now; one that has this id already is returned as it is.

        Raises InvalidRequest that names the field, NotFound, PermissionDenied, RateLimited.
        """
        with suppress(NotFound):
            return await self._sweeps.get(sweep_id, project=caller.project)
        body = _job_body(wanted)
        check_size(body)
        axes = find_axes(body)
        seed = secrets.randbelow(2**31) if wanted.sweep.seed is None else wanted.sweep.seed
        picks = chosen(axes, n_runs=wanted.sweep.n_runs, seed=seed)
        body = without_lists(body, axes)
        requests = [job_request(body, axes, one) for one in picks]
        check_values(body, axes, picks)
        metric = _metric(wanted, requests[0], axes)
        if wanted.sweep.eval is not None:
            scopes.check(caller.scopes, "POST", "/v1/evals")
            await self._evals.check(wanted.sweep.eval, project=caller.project, where="sweep.eval")
        for request in requests:
            await self._submission.check(request, access=caller.access)
        size = grid_size(axes)
        record = SweepRecord(
            id=sweep_id,
            project=caller.project,
            created_at=int(time.time()),
            key_id=caller.id,
            is_admin=caller.access.is_admin,
            body=body,
            axes=axes,
            grid_size=size,
            seed=seed if len(picks) < size else None,
            keep=wanted.sweep.keep,
            metric=metric,
            eval=wanted.sweep.eval,
            metadata=wanted.metadata,
            runs=tuple(_run(one, evaluated=wanted.sweep.eval is not None) for one in picks),
        )
        _log.info("sweep.created", sweep_id=sweep_id, runs=len(picks))
        return await self._sweeps.create(record)

    async def cancel(self, sweep_id: str, *, project: str) -> SweepRecord:
        """Stop a sweep with the jobs that it has under way; twice is the same as once.

        Raises NotFound, and TransitionRefused for one that has ended otherwise.
        """
        await self._sweeps.get(sweep_id, project=project)
        record = await self._sweeps.update(sweep_id, canceled)
        _log.info("sweep.cancelled", sweep_id=sweep_id)
        return record

    async def delete(self, sweep_id: str, *, project: str) -> None:
        """Forget a sweep that has ended; its jobs, models and eval runs stay. Raises NotFound, TransitionRefused."""
        record = await self._sweeps.get(sweep_id, project=project)
        if record.status not in ENDED:
            raise TransitionRefused(
                f"The sweep has status '{record.status.value}'; cancel it before it is deleted.",
                code="invalid_sweep_state",
            )
        if await self._sweeps.is_active(sweep_id):
            await self._stop(record)
        await self._sweeps.remove(record)
        _log.info("sweep.deleted", sweep_id=sweep_id)

    async def shown(self, record: SweepRecord) -> Sweep:
        """Return a sweep with what its jobs' own records say: its record is behind, and after its end never told."""
        return noted(record, await self._jobs.many([run.job_id for run in record.runs])).public()


def _job_body(wanted: CreateSweep) -> Body:
    """Return what the jobs have of the request, lists included; what is left out stays out."""
    given: Body = asdict(wanted)
    del given["sweep"]
    return {name: value for name, value in given.items() if value not in (None, {})}


def _metric(wanted: CreateSweep, request: CreateJob, axes: list[SweepAxis]) -> MetricName:
    """Choose what the runs are ranked by. Raises InvalidRequest where there is nothing to rank them by."""
    if wanted.sweep.eval is not None:
        if asked(request).method == "reward":
            raise InvalidRequest(
                "Reward models write no answers, so no eval can rank them; give a 'validation_file' instead.",
                code="invalid_value",
                param="sweep.eval",
            )
        return "eval_pass_rate"
    if wanted.validation_file is None:
        raise InvalidRequest(
            "A sweep ranks its runs by a validation file; give one, or an eval as 'sweep.eval'.",
            code="missing_required_parameter",
            param="validation_file",
        )
    if request.method is not None and request.method.type == "reinforcement":
        return "valid_reward"
    if (path := incomparable(axes)) is not None:
        raise InvalidRequest(
            f"Runs with different values of '{path}' have validation losses that cannot be compared; give an eval as "
            "'sweep.eval' to rank them by.",
            code="incomparable_runs",
            param=path,
        )
    return "full_valid_loss"


def _run(picks: list[int], *, evaluated: bool) -> SweepRunRecord:
    return SweepRunRecord(job_id=ids.new_job_id(), eval_run_id=ids.new_eval_run_id() if evaluated else "", picks=picks)
