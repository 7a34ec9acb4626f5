"""Taking a fine-tuning job in: everything that can be refused now is refused now, then record and queue."""

from __future__ import annotations

import secrets
import time

import structlog
from msgspec.structs import replace

from shared import ids
from shared.errors import InvalidRequest, NotFound, StoreUnavailable, TransitionRefused, UnsupportedMethod
from shared.queue import Queue
from shared.records import FileRecord, JobRecord
from shared.schemas.jobs import CreateJob
from shared.schemas.methods import SupervisedHyperparameters
from shared.settings import Settings
from shared.states import TERMINAL, JobState
from shared.store.files import FileStore
from shared.store.jobs import JobStore, event
from shared.store.registry import Registry, unknown_model

_log = structlog.get_logger()


class Submission:
    """Creates and cancels jobs."""

    def __init__(self, settings: Settings, files: FileStore, jobs: JobStore, registry: Registry, queue: Queue) -> None:
        self._settings = settings
        self._files = files
        self._jobs = jobs
        self._registry = registry
        self._queue = queue

    async def submit(self, request: CreateJob, *, project: str) -> JobRecord:
        """Record a job and ask a worker to look at it. Raises InvalidRequest, NotFound, StoreUnavailable."""
        hyperparameters = requested_hyperparameters(request)
        self._check_options(request)
        await self._check_model(request.model, project)
        await self._check_files(request, project)
        record = self._record(request, hyperparameters, project)
        await self._jobs.create(record, [event(f"Created fine-tuning job: {record.id}")])
        await self._enqueue(record.id)
        _log.info("job.created", job_id=record.id, model=record.model, training_file=record.training_file)
        return record

    async def cancel(self, job_id: str, *, project: str) -> JobRecord:
        """Stop a job; twice is the same as once. Raises NotFound, and TransitionRefused for one that has ended."""

        def end(current: JobRecord) -> JobRecord:
            if current.status == JobState.CANCELLED:
                return current
            if current.status in TERMINAL:
                raise TransitionRefused(f"Job {job_id} has already {current.status.value}; it cannot be cancelled.")
            return replace(current, status=JobState.CANCELLED, finished_at=int(time.time()), estimated_finish=None)

        record = await self._jobs.update(job_id, end, [event("The job was cancelled")], project=project)
        _log.info("job.cancelled", job_id=job_id)
        return record

    def _check_options(self, request: CreateJob) -> None:
        if request.integrations:
            raise InvalidRequest(
                "No integrations are configured on this server; leave 'integrations' out or empty.",
                param="integrations",
            )
        rank, served = self._settings.lora_rank, self._settings.max_lora_rank
        if rank > served:
            raise InvalidRequest(
                f"This server trains adapters of rank {rank} but serves at most {served}; "
                "its operator must raise max_lora_rank or lower lora_rank.",
                code="rank_not_servable",
            )

    async def _check_model(self, model: str, project: str) -> None:
        if await self._registry.base(model) is not None:
            return
        adapter = await self._registry.get(model)
        if adapter is None or adapter.project != project or not adapter.listed:
            raise unknown_model(model)
        raise InvalidRequest(
            f"Training on top of a fine-tuned model is not offered; start from its base model, '{adapter.base}'.",
            param="model",
        )

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

    def _record(self, request: CreateJob, hyperparameters: SupervisedHyperparameters, project: str) -> JobRecord:
        organization = self._settings.organization
        return JobRecord(
            id=ids.new_job_id(),
            project=project,
            organization=organization,
            created_at=int(time.time()),
            model=request.model,
            training_file=request.training_file,
            validation_file=request.validation_file,
            suffix=request.suffix,
            seed=secrets.randbelow(2**31) if request.seed is None else request.seed,
            requested=hyperparameters,
            metadata=request.metadata,
            model_name=ids.model_name(request.model, organization, request.suffix),
        )

    async def _enqueue(self, job_id: str) -> None:
        """Ask for validation. The record is what counts: workers look for jobs that nobody asked for, too."""
        try:
            await self._queue.validate(job_id)
        except StoreUnavailable:
            _log.warning("job.not_enqueued", job_id=job_id)


def requested_hyperparameters(request: CreateJob) -> SupervisedHyperparameters:
    """Read `method`, or else the deprecated `hyperparameters`. Raises UnsupportedMethod."""
    if request.method is not None and request.method.type != "supervised":
        raise UnsupportedMethod(
            f"The method '{request.method.type}' is not offered by this server; use 'supervised'.", param="method.type"
        )
    if request.method is not None and request.method.supervised is not None:
        return request.method.supervised.hyperparameters
    return request.hyperparameters or SupervisedHyperparameters()
