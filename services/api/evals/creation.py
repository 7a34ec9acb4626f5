"""Taking runs in, cancelling and deleting them: what their owner may do."""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog
from msgspec.structs import replace

from services.api.evals.questions import check_messages
from services.api.evals.sources import Sources
from services.api.gateway.model_names import ModelNames
from services.api.graders.judges import Judges
from services.api.graders.permitted import check_judges
from shared.blobs.interface import Blobs
from shared.errors import NotFound, TransitionRefused
from shared.eval_records import EvalRecord, EvalRunRecord
from shared.eval_states import ENDED, EvalRunState
from shared.model_records import Access
from shared.schemas.evals import CompletionsRun, CreateEvalRun, EvalStoredCompletions, RunSource
from shared.store.eval_runs import EvalRunStore, Found
from shared.store.evals import EvalStore

_log = structlog.get_logger()


class EvalRuns:
    """Creates, cancels and deletes runs; the record says what is wanted, and the runners follow it."""

    def __init__(
        self,
        evals: EvalStore,
        runs: EvalRunStore,
        sources: Sources,
        names: ModelNames,
        judges: Judges,
        blobs: Blobs,
    ) -> None:
        self._evals = evals
        self._runs = runs
        self._sources = sources
        self._names = names
        self._judges = judges
        self._blobs = blobs

    async def create(
        self, request: CreateEvalRun, source: bytes, *, eval_id: str, access: Access, run_id: str
    ) -> Found:
        """Record a run; one that has this id already is returned as it is.

        `source` is the data source as it was posted. The run holds its rows from here on, and may use the models that
        its creator may. Raises InvalidRequest that names the field, NotFound, RateLimited, Unavailable.
        """
        eval_ = await self._evals.get(eval_id, project=access.project)
        try:
            return await self._runs.find(run_id, eval_id=eval_id, project=access.project)
        except NotFound:
            pass
        model = await self._check(request.data_source, access)
        await self._check_judges(eval_, access)
        await self._runs.check_active(access.project)
        taken = await self._sources.take(request.data_source.source, eval_, run_id, source_bytes=len(source))
        record = EvalRunRecord(
            id=run_id,
            eval_id=eval_id,
            project=access.project,
            name=request.name or "",
            model=model,
            file_id=taken.file.id if taken.file else "",
            criteria=[grader.name for grader in eval_.testing_criteria],
            metadata=request.metadata,
            created_at=int(time.time()),
            key_id=access.key_id,
            is_admin=access.is_admin,
        )
        file_bytes = taken.file.size_bytes if taken.file else None
        await self._runs.create(record, source=source, rows_bytes=taken.rows_bytes, file_bytes=file_bytes)
        _log.info("eval_run.created", run_id=run_id, eval_id=eval_id, model=model)
        return await self._runs.find(run_id, eval_id=eval_id, project=access.project)

    async def cancel(self, run_id: str, *, eval_id: str, project: str) -> Found:
        """End a run where it is; twice is the same as once. The results that it has stay.

        Raises NotFound, and TransitionRefused for a run that has ended otherwise.
        """

        def stop(current: EvalRunRecord) -> EvalRunRecord:
            if current.status is EvalRunState.CANCELED:
                return current
            if current.status in ENDED:
                raise TransitionRefused(
                    f"Cannot cancel a run with status '{current.status.value}'.", code="invalid_run_state"
                )
            return replace(current, status=EvalRunState.CANCELED, ended_at=int(time.time()))

        await self._runs.find_record(run_id, eval_id=eval_id, project=project)
        await self._runs.update(run_id, stop)
        _log.info("eval_run.cancelled", run_id=run_id)
        await self._blobs.remove(self._blobs.paths.eval_folder(run_id))
        return await self._runs.find(run_id, eval_id=eval_id, project=project)

    async def delete(self, run_id: str, *, eval_id: str, project: str) -> None:
        """Delete a run with the results of its rows, whatever it is at. Raises NotFound."""
        await self._runs.remove(await self._runs.find_record(run_id, eval_id=eval_id, project=project))
        _log.info("eval_run.deleted", run_id=run_id)
        await self._blobs.remove(self._blobs.paths.eval_folder(run_id))

    async def ids(self, eval_id: str, *, limit: int) -> Sequence[str]:
        """List the first ids of an eval's runs."""
        return await self._runs.ids(eval_id, limit=limit)

    async def _check(self, source: RunSource, access: Access) -> str:
        """Return the model that is to answer, "" if none is. Raises InvalidRequest, NotFound."""
        if not isinstance(source, CompletionsRun):
            return ""
        check_messages(source, are_stored=isinstance(source.source, EvalStoredCompletions))
        if source.model is None:
            return ""
        await self._check_model(source.model, access, where="data_source.model")
        return source.model

    async def _check_judges(self, eval_: EvalRecord, access: Access) -> None:
        for place, grader in enumerate(eval_.testing_criteria):
            await check_judges(
                grader, access, names=self._names, judges=self._judges, where=f"testing_criteria[{place}]"
            )

    async def _check_model(self, model: str, access: Access, *, where: str) -> None:
        try:
            await self._names.look_up(model, access)
        except NotFound as error:
            raise NotFound(error.message, code=error.code, param=where) from error
