"""Taking a fine-tuning job in: everything that can be refused now is refused now, then record and queue."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

import structlog

from services.api import metrics
from services.api.gateway.model_names import ModelNames
from services.api.graders.permitted import check_judges
from services.api.graders.running import Graders
from services.api.jobs.reinforcement import GRADER
from services.api.jobs.requests import Asked, asked, check_options, shown_integrations
from shared import ids, tracing
from shared.errors import InvalidRequest, NotFound, PermissionDenied, StoreUnavailable
from shared.model_records import Access
from shared.queue import Queue
from shared.records import BaseRecord, FileRecord, JobRecord
from shared.schemas.jobs import CreateJob
from shared.settings import Settings
from shared.store.files import FileStore
from shared.store.jobs import JobStore, event
from shared.store.registry import Registry, unknown_model

_log = structlog.get_logger()


@dataclass(frozen=True)
class _Start:
    """What training starts from: a base, or a fine-tuned model on it."""

    base: str
    context_length: int
    named_after: str
    """The base that stands in the new model's name: the operator's, however often it was fine-tuned since."""
    parent: str | None = None
    parent_rank: int | None = None


class Submission:
    """Creates jobs."""

    def __init__(
        self,
        settings: Settings,
        files: FileStore,
        jobs: JobStore,
        registry: Registry,
        names: ModelNames,
        graders: Graders,
        queue: Queue,
    ) -> None:
        self._settings = settings
        self._files = files
        self._jobs = jobs
        self._registry = registry
        self._names = names
        self._graders = graders
        self._queue = queue

    async def submit(self, request: CreateJob, *, access: Access, job_id: str, limit: int | None = None) -> JobRecord:
        """Record a job and ask a worker to look at it; a job that has this id already is returned as it is.

        Raises InvalidRequest, NotFound, StoreUnavailable, RateLimited at `limit` unfinished jobs of the project, and
        PermissionDenied for a priority that passes other projects, unless an administrator asks for it.
        """
        project = access.project
        try:
            return await self._jobs.get(job_id, project=project)
        except NotFound:
            pass
        _check_priority(request, access)
        wanted = asked(request)
        start = await self._start(request.model, access)
        check_options(request, self._settings, context_length=start.context_length, parent_rank=start.parent_rank)
        await self._check_grader(wanted, access)
        await self._check_files(request, project)
        record = self._record(request, wanted, start, project, job_id)
        record = await self._jobs.create(record, [event(f"Created fine-tuning job: {record.id}")], limit=limit)
        await self._enqueue(record)
        metrics.JOBS_CREATED.labels(record.method).inc()
        _log.info("job.created", job_id=record.id, model=record.model, training_file=record.training_file)
        return record

    async def _start(self, name: str, access: Access) -> _Start:
        """Find what `model` means: a base, an alias, or a fine-tuned model. Raises NotFound."""
        model = (await self._names.look_up(name, access)).model
        if isinstance(model, BaseRecord):
            return _Start(model.id, model.context_length, model.origin or model.id)
        base = await self._registry.base(model.base)
        if base is None:
            raise unknown_model(name)
        if model.kind == "reward":
            raise InvalidRequest(
                f"Invalid value for 'model': '{name}' is a reward model, and training does not go on from one.",
                code="invalid_value",
                param="model",
            )
        named_after = base.origin or base.id
        return _Start(base.id, base.context_length, named_after, parent=model.name, parent_rank=model.rank)

    async def _check_grader(self, wanted: Asked, access: Access) -> None:
        """Raises InvalidRequest, and NotFound for judges that the key may not use."""
        if wanted.reinforcement is None:
            return
        grader = wanted.reinforcement.grader
        await self._graders.check(grader, where=GRADER)
        await check_judges(grader, access, names=self._names, judges=self._graders.judges, where=GRADER)

    async def _check_files(self, request: CreateJob, project: str) -> None:
        await self._training_input(request.training_file, "training_file", project)
        if request.validation_file is None:
            return
        if request.validation_file == request.training_file:
            raise InvalidRequest(
                "The validation file is the training file; its loss would say nothing about new data.",
                param="validation_file",
            )
        await self._training_input(request.validation_file, "validation_file", project)

    async def _training_input(self, file_id: str, param: str, project: str) -> FileRecord:
        try:
            record = await self._files.get(file_id, project=project)
        except NotFound as error:
            raise NotFound(error.message, code=error.code, param=param) from error
        if record.purpose != "fine-tune":
            raise InvalidRequest(
                f"File {file_id} was uploaded with purpose '{record.purpose}'; upload it with purpose 'fine-tune'.",
                code="invalid_file_purpose",
                param=param,
            )
        return record

    def _record(self, request: CreateJob, wanted: Asked, start: _Start, project: str, job_id: str) -> JobRecord:
        organization = self._settings.organization
        return JobRecord(
            id=job_id,
            project=project,
            organization=organization,
            created_at=int(time.time()),
            model=start.base,
            parent=start.parent,
            training_file=request.training_file,
            validation_file=request.validation_file,
            suffix=request.suffix,
            seed=secrets.randbelow(2**31) if request.seed is None else request.seed,
            method=wanted.method,
            requested=wanted.hyperparameters,
            requested_beta=wanted.beta,
            requested_weights=wanted.weights,
            reinforcement=wanted.reinforcement,
            options=request.options,
            integrations=shown_integrations(request.integrations),
            metadata=request.metadata,
            traceparent=tracing.traceparent(),
            model_name=ids.model_name(start.named_after, organization, request.suffix),
        )

    async def _enqueue(self, record: JobRecord) -> None:
        """Ask for validation. The record is what counts: workers look for jobs that nobody asked for, too."""
        try:
            await self._queue.put(record, order=await self._jobs.order(record))
        except StoreUnavailable:
            _log.warning("job.not_enqueued", job_id=record.id)


def _check_priority(request: CreateJob, access: Access) -> None:
    """Raises PermissionDenied for a job that would go before those of all projects."""
    if request.options.priority == "high" and not access.is_admin:
        raise PermissionDenied(
            "Priority 'high' goes before the jobs of all projects, and needs an API key with the scope admin; use "
            "'normal', or leave it out.",
            param="selftune.priority",
        )
