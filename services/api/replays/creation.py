"""Taking replays in, and stopping them."""

from __future__ import annotations

import time
from contextlib import suppress

import structlog

from services.api.flows import canceled
from services.api.gateway.model_names import ModelNames
from services.api.model_evals import ModelEvals
from shared import ids
from shared.errors import InvalidRequest, NotFound
from shared.records import BaseRecord, KeyRecord
from shared.replay_records import ReplayRecord, ReplayRowRecord
from shared.schemas.replays import CreateReplay
from shared.store.flows import FlowStore

_log = structlog.get_logger()


class Replays:
    """Creates and cancels replays; the record says what is wanted, and the runner follows it."""

    def __init__(self, replays: FlowStore[ReplayRecord], names: ModelNames, evals: ModelEvals) -> None:
        self._replays = replays
        self._names = names
        self._evals = evals

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
