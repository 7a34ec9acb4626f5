"""Taking replays in, showing, stopping and deleting them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
from msgspec.structs import replace

from services.api.flow_jobs import FlowJobs, failure_of
from services.api.flows import canceled
from services.api.gateway.model_names import ModelNames
from services.api.model_evals import ModelEvals
from shared import ids
from shared.errors import InvalidRequest, NotFound, TransitionRefused
from shared.flow_states import ENDED
from shared.records import BaseRecord, JobRecord, KeyRecord
from shared.replay_records import ReplayRecord, ReplayRowRecord
from shared.schemas.replays import CreateReplay, Replay
from shared.store.flows import FlowStore

_log = structlog.get_logger()


class Replays:
    """Creates, shows, cancels and deletes replays; the record says what is wanted, and the runner follows it.

    `stop` ends what a replay that has ended has under way.
    """

    def __init__(
        self,
        replays: FlowStore[ReplayRecord],
        names: ModelNames,
        evals: ModelEvals,
        jobs: FlowJobs,
        stop: Callable[[ReplayRecord], Awaitable[None]],
    ) -> None:
        self._replays = replays
        self._names = names
        self._evals = evals
        self._jobs = jobs
        self._stop = stop

    async def create(self, wanted: CreateReplay, *, caller: KeyRecord, replay_id: str) -> ReplayRecord:
        """Record a replay; one that has this id already is returned as it is.

        What is wrong with one of the models is said on its row. Raises InvalidRequest that names the field, NotFound,
        RateLimited.
        """
        with suppress(NotFound):
            return await self._replays.get(replay_id, project=caller.project)
        base = await self._base(wanted.base, caller)
        if len(set(wanted.models)) < len(wanted.models):
            raise InvalidRequest("'models' has a model twice.", code="invalid_value", param="models")
        await self._evals.check(wanted.eval, project=caller.project, where="eval")
        record = ReplayRecord(
            id=replay_id,
            project=caller.project,
            created_at=int(time.time()),
            key_id=caller.id,
            is_admin=caller.access.is_admin,
            base=base.id,
            suffix=wanted.suffix,
            eval=wanted.eval,
            metadata=wanted.metadata,
            rows=tuple(map(_row, wanted.models)),
        )
        _log.info("replay.created", replay_id=replay_id, base=base.id, models=len(record.rows))
        return await self._replays.create(record)

    async def cancel(self, replay_id: str, *, project: str) -> ReplayRecord:
        """Stop a replay with the jobs and runs that it has under way; twice is the same as once.

        Raises NotFound, and TransitionRefused for one that has ended otherwise.
        """
        await self._replays.get(replay_id, project=project)
        record = await self._replays.update(replay_id, canceled)
        _log.info("replay.cancelled", replay_id=replay_id)
        return record

    async def delete(self, replay_id: str, *, project: str) -> None:
        """Forget a replay that has ended; its jobs, models and eval runs stay. Raises NotFound, TransitionRefused."""
        record = await self._replays.get(replay_id, project=project)
        if record.status not in ENDED:
            raise TransitionRefused(
                f"The replay has status '{record.status.value}'; cancel it before it is deleted.",
                code="invalid_replay_state",
            )
        if await self._replays.is_active(replay_id):
            await self._stop(record)
        await self._replays.remove(record)
        _log.info("replay.deleted", replay_id=replay_id)

    async def shown(self, record: ReplayRecord) -> Replay:
        """Return a replay; of one that has ended, rows without an end have what their jobs' own records say."""
        if record.status in ENDED:
            jobs = await self._jobs.many([row.job_id for row in record.rows if not row.is_over])
            rows = [_left(row, jobs[row.job_id]) if row.job_id in jobs else row for row in record.rows]
            record = replace(record, rows=tuple(rows))
        return record.public()

    async def _base(self, name: str, caller: KeyRecord) -> BaseRecord:
        try:
            model = (await self._names.look_up(name, caller.access)).model
        except NotFound as error:
            raise NotFound(error.message, code=error.code, param="base") from error
        if not isinstance(model, BaseRecord):
            raise InvalidRequest(
                f"Invalid value for 'base': '{name}' is a fine-tuned model; name a base.",
                code="invalid_value",
                param="base",
            )
        return model


def _row(model: str) -> ReplayRowRecord:
    return ReplayRowRecord(
        model=model,
        job_id=ids.new_job_id(),
        champion_run_id=ids.new_eval_run_id(),
        challenger_run_id=ids.new_eval_run_id(),
    )


def _left(row: ReplayRowRecord, job: JobRecord) -> ReplayRowRecord:
    """Return a row that its replay has left before its end."""
    made = job.fine_tuned_model or ""
    return replace(row, status=job.status.value, has_job=True, challenger=made, error=failure_of(job))
