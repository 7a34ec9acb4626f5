"""The queue `validate`: read a job's files line by line, then let it train."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Literal

import structlog
from msgspec.structs import replace

from services.trainer import metrics
from services.trainer.data.tokenizing_protocol import Tokenized
from services.trainer.failures import TrainingFailed
from services.trainer.jobs.holding import holding
from services.trainer.jobs.options import job_options, offered_base, settle
from services.trainer.jobs.requirements import memory_event, with_estimate
from services.trainer.jobs.wanting import VALIDATED, while_wanted
from services.trainer.launch.process_group import process_count
from services.trainer.launch.tokenizing_process import overlong_events, tokenize_files
from services.trainer.shortages import files_failed
from services.trainer.stores import Stores, persist, persist_once
from shared import tracing
from shared.errors import InvalidTrainingData, LeaseLost, NotFound, SelftuneError, TransitionRefused
from shared.grading.fitting import unfit_row
from shared.records import JobRecord
from shared.schemas.jobs import JobError
from shared.states import JobState
from shared.store.jobs import event
from shared.training_data import validate

log = structlog.get_logger()


MAX_VALIDATIONS = 5
"""A job whose files took down so many workers is given up."""
_FOUND = (
    "resolved", "resolved_beta", "resolved_weights", "resolved_reinforcement", "options", "training_tokens",
    "validation_tokens", "estimated_memory_bytes", "memory_parts",
)  # fmt: skip
"""What validation finds out about a job."""
PUT_DOWN_S = 2.0
"""How long a worker that stops tries to note it."""


async def validate_job(stores: Stores, job_id: str) -> bool:
    """Move a job from validating_files to queued, or fail it. Safe to call twice, and for a job that is gone.

    Returns whether to take it up again at once: it was paused, and resumed before it was put down.
    """
    wanted_again = False
    async with holding(stores, job_id) as lease:
        if lease is None:
            return False
        try:
            await _validate(stores, job_id, lease.token)
            wanted_again = await _put_down(stores, job_id, lease.token)
        except NotFound:
            log.info("validation.job_gone", job_id=job_id)
        except asyncio.CancelledError:  # this worker is stopping, which is no death
            with suppress(TimeoutError, LeaseLost, NotFound):
                async with asyncio.timeout(PUT_DOWN_S):
                    await _put_down(stores, job_id, lease.token)
            raise
    return wanted_again


async def _put_down(stores: Stores, job_id: str, token: str) -> bool:
    """Note that an attempt has ended in order; returns whether the job waits for another."""

    def forget(current: JobRecord) -> JobRecord:
        return replace(current, validations=0) if current.validations else current

    left = await persist_once(lambda nonce: stores.jobs.update(job_id, forget, fence=token, nonce=nonce))
    return left.status is JobState.VALIDATING_FILES


async def _validate(stores: Stores, job_id: str, token: str) -> None:
    record = await persist(lambda: stores.jobs.get(job_id))
    if record.status is not JobState.VALIDATING_FILES:
        return
    story = [event(_announcement(record))]

    def begin(current: JobRecord) -> JobRecord:
        waits = current.status is JobState.VALIDATING_FILES
        return replace(current, validations=current.validations + 1) if waits else current

    record = await persist_once(lambda nonce: stores.jobs.update(job_id, begin, story, fence=token, nonce=nonce))
    if record.status is not JobState.VALIDATING_FILES:
        return
    try:
        if record.validations > MAX_VALIDATIONS:
            raise TrainingFailed(f"The trainer died {MAX_VALIDATIONS} times while it read this job's files.")
        with (
            tracing.span("job.validate", parent=record.traceparent, job_id=job_id),
            metrics.VALIDATION_SECONDS.time(),
        ):
            prepared = await while_wanted(stores, job_id, VALIDATED, persist(lambda: _prepare(stores, record)))
    except (InvalidTrainingData, TrainingFailed, OSError) as error:
        reason = files_failed(error) if isinstance(error, OSError) else error
        await persist(lambda: fail(stores, job_id, reason, fence=token))
    else:
        if prepared is not None:
            await _move_to_queue(stores, job_id, *prepared, token)


async def _prepare(stores: Stores, record: JobRecord) -> tuple[Tokenized, JobRecord]:
    """Check the files, have them tokenised, settle what the job trains with; a second time changes nothing."""
    await _read_files(stores, record)
    options = await job_options(stores, record)
    base = await offered_base(stores, record)
    tokens = await tokenize_files(stores, record, base.path, options)
    settled = settle(
        replace(
            record,
            training_tokens=tokens.training.key,
            validation_tokens=tokens.validation.key if tokens.validation else "",
        ),
        tokens.training.rows,
        options,
        n_desirable=tokens.training.n_desirable,
    )
    assert settled.resolved is not None and settled.resolved.batch_size != "auto"
    processes = process_count(settled.resolved.batch_size, stores.settings)
    return tokens, await with_estimate(settled, base.path, tokens.heaviest, processes=processes)


def _announcement(record: JobRecord) -> str:
    second = f" and validation file: {record.validation_file}" if record.validation_file else ""
    return f"Validating training file: {record.training_file}{second}"


async def _read_files(stores: Stores, record: JobRecord) -> None:
    """Check both files, without a tokenizer: what is wrong with most bad ones is found at once."""
    method = record.method
    path = await _content(stores, record, record.training_file, "training")
    census = await asyncio.to_thread(validate, path, method=method)
    await _check_rows(record, path, "training")
    if record.validation_file:
        path = await _content(stores, record, record.validation_file, "validation")
        await asyncio.to_thread(validate, path, role="validation", method=method, expected=census.format)
        await _check_rows(record, path, "validation")


async def _check_rows(record: JobRecord, path: Path, role: Literal["training", "validation"]) -> None:
    """Raise InvalidTrainingData for a row that lacks what the job's grader names."""
    if record.reinforcement is None:
        return
    if fault := await asyncio.to_thread(unfit_row, path, record.reinforcement.grader):
        raise InvalidTrainingData(
            f"The job failed due to an invalid {role} file. {fault[:1].upper()}{fault[1:]}.",
            code=f"invalid_{role}_file",
            param=f"{role}_file",
        )


async def _content(stores: Stores, record: JobRecord, file_id: str, role: Literal["training", "validation"]) -> Path:
    try:
        await stores.files.get(file_id, project=record.project)
        path = stores.paths.file_content(file_id)
        await stores.blobs.fetch(path.parent)
    except (NotFound, FileNotFoundError) as error:
        raise InvalidTrainingData(
            f"The {role} file {file_id} was deleted before it could be read.",
            code=f"invalid_{role}_file",
            param=f"{role}_file",
        ) from error
    return path


async def _move_to_queue(stores: Stores, job_id: str, tokens: Tokenized, settled: JobRecord, token: str) -> None:
    found = {name: getattr(settled, name) for name in _FOUND}

    def queue(record: JobRecord) -> JobRecord:
        if record.status is not JobState.VALIDATING_FILES:
            return record
        return replace(record, status=JobState.QUEUED, **found)

    # A job that was paused meanwhile stays as it is; resuming it validates again.
    assert settled.options.max_length is not None
    told = [*overlong_events(tokens, settled.options.max_length), memory_event(settled)]
    story = [*filter(None, told), event("Files validated, moving job to queued state")]
    moved = await persist_once(lambda nonce: stores.jobs.update(job_id, queue, story, fence=token, nonce=nonce))
    if moved.status is JobState.QUEUED:
        await stores.enqueue(moved)


async def fail(stores: Stores, job_id: str, error: SelftuneError, *, fence: str) -> JobRecord:
    """End a job as failed. One that has ended stays as it is, and so does a paused one, which meets it again."""
    code = error.code or "training_failed"
    log.info("job.failed", job_id=job_id, code=code)
    try:
        return await stores.jobs.finish(
            job_id,
            JobState.FAILED,
            events=[event(error.message, level="error", data={"code": code})],
            fence=fence,
            error=JobError(code=code, message=error.message, param=error.param),
        )
    except TransitionRefused as refusal:
        log.info("job.not_failed", job_id=job_id, reason=refusal.message)
        return await stores.jobs.get(job_id)
