"""Taking distillations in, cancelling and deleting them: what their owner may do."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import structlog

from services.api.distillation.collecting import ITEM_INPUT, prompts_path
from services.api.distillation.jobs import StudentJobs
from services.api.distillation.runner import Parts
from services.api.evals.creation import EvalRuns
from services.api.evals.definitions import Evals
from services.api.evals.questions import check_messages
from services.api.evals.rows import encoded
from services.api.evals.sources import Sources
from services.api.flows import canceled
from shared.blobs.interface import Blobs
from shared.distillation_records import DistillationIds, DistillationRecord
from shared.errors import InvalidRequest, NotFound, TransitionRefused, Unavailable
from shared.flow_states import ENDED
from shared.model_records import Access
from shared.paths import write_atomic
from shared.schemas.distillations import (
    CreateDistillation,
    DistillationSource,
    PromptsSource,
    ShownSource,
    StoredSource,
)
from shared.schemas.evals import CompletionsRun, EvalFileContent, EvalFileId
from shared.store.files import FileStore
from shared.store.flows import FlowStore

_log = structlog.get_logger()

MAX_FIELD_BYTES = 64 << 10
"""Of a part of a request that the record holds, as JSON."""


class Distillations:
    """Creates, cancels and deletes distillations; the record says what is wanted, and the runners follow it."""

    def __init__(
        self,
        flows: FlowStore[DistillationRecord],
        files: FileStore,
        sources: Sources,
        evals: Evals,
        runs: EvalRuns,
        jobs: StudentJobs,
        parts: Parts,
        blobs: Blobs,
    ) -> None:
        self._flows = flows
        self._files = files
        self._sources = sources
        self._evals = evals
        self._runs = runs
        self._jobs = jobs
        self._parts = parts
        self._blobs = blobs

    async def create(self, request: CreateDistillation, *, access: Access, flow_id: str) -> DistillationRecord:
        """Record a distillation; one that has this id already is returned as it is.

        It holds its prompts from here on. Raises InvalidRequest that names the field, NotFound, RateLimited,
        PermissionDenied, Unavailable.
        """
        try:
            return await self._flows.get(flow_id, project=access.project)
        except NotFound:
            pass
        start_model = await self._check(request, access)
        source = _shown(request.source)
        if isinstance(request.source, PromptsSource):
            await self._take(request.source.prompts, flow_id, access.project)
        record = DistillationRecord(
            id=flow_id,
            project=access.project,
            created_at=int(time.time()),
            key_id=access.key_id,
            is_admin=access.is_admin,
            name=request.name or "",
            metadata=request.metadata,
            source=source,
            filter=request.filter,
            graders=request.graders,
            student=request.student,
            start_model=start_model,
            evaluation=request.evaluation,
            ids=DistillationIds.new(),
        )
        record = await self._flows.create(record)
        _log.info("distillation.created", distillation_id=flow_id, source=source.type, student=start_model)
        return record

    async def cancel(self, flow_id: str, *, project: str) -> DistillationRecord:
        """End a distillation where it is; twice is the same as once. What it has made stays.

        Raises NotFound, and TransitionRefused for one that has ended otherwise.
        """
        await self._flows.get(flow_id, project=project)
        record = await self._flows.update(flow_id, canceled)
        _log.info("distillation.cancelled", distillation_id=flow_id)
        return record

    async def delete(self, flow_id: str, *, project: str) -> None:
        """Forget a distillation that has ended; what it has made stays. Raises NotFound, TransitionRefused."""
        record = await self._flows.get(flow_id, project=project)
        if record.status not in ENDED:
            raise TransitionRefused(
                f"The distillation has status '{record.status.value}'; cancel it before it is deleted.",
                code="invalid_distillation_state",
            )
        if await self._flows.is_active(flow_id):
            await self._parts.clean_up(record)
        await self._flows.remove(record)
        _log.info("distillation.deleted", distillation_id=flow_id)

    async def _check(self, request: CreateDistillation, access: Access) -> str:
        """Return the model that the student starts from. Raises what `create` does."""
        _check_sizes(request)
        await self._evals.check(request.graders, where="graders")
        await self._runs.check_judges(request.graders, access, where="graders")
        unknown = request.filter.minimum_scores.keys() - {grader.name for grader in request.graders}
        if unknown:
            raise InvalidRequest(
                f"Invalid value for 'filter.minimum_scores': no grader is named '{min(unknown)[:100]}'.",
                code="invalid_value",
                param="filter.minimum_scores",
            )
        if isinstance(request.source, PromptsSource):
            await self._runs.check_model(request.source.teacher, access, where="source.teacher")
            _check_messages(request.source)
        return await self._jobs.check(request.student, access)

    async def _take(self, prompts: EvalFileContent | EvalFileId, flow_id: str, project: str) -> None:
        """Give a distillation its prompts, before it has a record. Raises as `create` does."""
        path = prompts_path(self._blobs, flow_id)
        try:
            if isinstance(prompts, EvalFileId):
                await self._sources.take_file(prompts, project, path, where="source.prompts.id")
                return
            rows = await asyncio.to_thread(encoded, prompts.content)
            await self._files.check_room(project, len(rows))
            await asyncio.to_thread(_write, path, rows)
            await self._blobs.keep_file(path)
        except OSError as error:
            raise Unavailable("The server's storage does not take the prompts.", code="storage_unavailable") from error


def _write(path: Path, rows: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, rows)


def _check_sizes(request: CreateDistillation) -> None:
    """Raises InvalidRequest that names the field, for what would make the record large."""
    parts: dict[str, object] = {
        "graders": request.graders,
        "evaluation.sampling_params": request.evaluation.sampling_params,
    }
    if isinstance(request.source, PromptsSource):
        parts["source.input_messages"] = request.source.input_messages
        parts["source.sampling_params"] = request.source.sampling_params
    for field, part in parts.items():
        if (size := len(msgspec.json.encode(part))) > MAX_FIELD_BYTES:
            raise InvalidRequest(
                f"'{field}' has {size:,} bytes; a distillation takes at most {MAX_FIELD_BYTES:,}.",
                code="invalid_value",
                param=field,
            )


def _check_messages(source: PromptsSource) -> None:
    """Raises InvalidRequest that names the field."""
    asked = CompletionsRun(
        source=source.prompts, model=source.teacher, input_messages=source.input_messages or ITEM_INPUT
    )
    try:
        check_messages(asked, are_stored=False)
    except InvalidRequest as error:
        was = error.param or ""
        param = was.replace("data_source.", "source.", 1)
        raise InvalidRequest(error.message.replace(f"'{was}'", f"'{param}'"), code=error.code, param=param) from error


def _shown(source: DistillationSource) -> ShownSource:
    if isinstance(source, StoredSource):
        return ShownSource(
            type="stored_completions",
            metadata=source.metadata,
            model=source.model,
            created_after=source.created_after,
            created_before=source.created_before,
        )
    return ShownSource(
        type="prompts",
        teacher=source.teacher,
        file_id=source.prompts.id if isinstance(source.prompts, EvalFileId) else None,
        posted_prompts=len(source.prompts.content) if isinstance(source.prompts, EvalFileContent) else None,
        input_messages=source.input_messages or ITEM_INPUT,
        sampling_params=source.sampling_params,
    )
