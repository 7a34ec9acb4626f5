"""Taking A/B runs in."""

from __future__ import annotations

import secrets
import time

import msgspec
import structlog

from services.api.ab_runs.rubric import check_judge
from services.api.evals.creation import EvalRuns
from services.api.graders.running import Graders
from shared.ab_records import AbSpec
from shared.errors import InvalidRequest, NotFound
from shared.eval_records import EvalRunRecord
from shared.eval_states import ENDED, EvalRunState
from shared.model_records import Access
from shared.schemas.ab_runs import AbJudge, CreateAbRun
from shared.schemas.evals import CompletionsRun, RunSource
from shared.store.eval_runs import EvalRunStore, Found
from shared.store.evals import EvalStore
from shared.store.files import FileStore

_log = structlog.get_logger()

_decode_source = msgspec.json.Decoder(RunSource).decode


class AbRuns:
    """Creates A/B runs; EvalRuns cancels and deletes them as it does every run."""

    def __init__(
        self, evals: EvalStore, runs: EvalRunStore, files: FileStore, eval_runs: EvalRuns, graders: Graders
    ) -> None:
        self._evals = evals
        self._runs = runs
        self._files = files
        self._eval_runs = eval_runs
        self._graders = graders

    async def create(self, request: CreateAbRun, *, eval_id: str, access: Access, run_id: str) -> Found:
        """Record an A/B run; one that has this id already is returned as it is.

        Raises InvalidRequest that names the field, NotFound, RateLimited, Unavailable.
        """
        await self._evals.get(eval_id, project=access.project)
        try:
            return await self._find(run_id, eval_id, access.project)
        except NotFound:
            pass
        if request.judge is not None:
            await self._check_judge(request.judge, access)
        spec = msgspec.json.encode(await self._spec(request, eval_id, access.project))
        await self._runs.check_active(access.project)
        await self._files.check_room(access.project, len(spec))
        record = EvalRunRecord(
            id=run_id,
            eval_id=eval_id,
            project=access.project,
            kind="ab",
            name=request.name or "",
            model="" if request.judge is None or self._is_outside(request.judge) else request.judge.model,
            criteria=[],
            metadata=request.metadata,
            created_at=int(time.time()),
            key_id=access.key_id,
            is_admin=access.is_admin,
        )
        await self._runs.create(record, source=spec)
        _log.info("ab_run.created", run_id=run_id, eval_id=eval_id)
        return await self._find(run_id, eval_id, access.project)

    async def _find(self, run_id: str, eval_id: str, project: str) -> Found:
        return await self._runs.find(run_id, eval_id=eval_id, project=project, kind="ab")

    async def _check_judge(self, judge: AbJudge, access: Access) -> None:
        await check_judge(judge, self._graders)
        if not self._is_outside(judge):
            await self._eval_runs.check_model(judge.model, access, where="judge.model")

    def _is_outside(self, judge: AbJudge) -> bool:
        return self._graders.judges.is_outside(judge.model)

    async def _spec(self, request: CreateAbRun, eval_id: str, project: str) -> AbSpec:
        if request.run_a == request.run_b:
            raise InvalidRequest(
                "Invalid value for 'run_b': it is the same run as 'run_a'.", code="invalid_value", param="run_b"
            )
        tools = [
            await self._tools(run_id, eval_id, project, param)
            for param, run_id in (("run_a", request.run_a), ("run_b", request.run_b))
        ]
        return AbSpec(
            run_a=request.run_a,
            run_b=request.run_b,
            judge=request.judge,
            seed=secrets.randbits(32) if request.seed is None else request.seed,
            salt=secrets.token_hex(16),
            tools=tools[0] if tools[0] == tools[1] else None,
            tools_differ=tools[0] != tools[1],
        )

    async def _tools(self, run_id: str, eval_id: str, project: str, param: str) -> list[dict[str, object]] | None:
        """Return what a run's model may call. Raises NotFound, and InvalidRequest for one that will have no answers."""
        try:
            found = await self._runs.find(run_id, eval_id=eval_id, project=project)
        except NotFound as error:
            raise NotFound(error.message, param=param) from error
        status = found.record.status
        if status in ENDED and status is not EvalRunState.COMPLETED:
            raise InvalidRequest(
                f"Run '{run_id}' has status '{status.value}'; answers are compared of runs that complete.",
                code="invalid_run_state",
                param=param,
            )
        source = _decode_source(found.source)
        sampling = source.sampling_params if isinstance(source, CompletionsRun) else None
        return sampling.tools if sampling is not None else None
