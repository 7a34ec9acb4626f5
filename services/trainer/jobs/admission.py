"""A worker takes only jobs that fit into its memory and can begin; of the others it says what they wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog
from msgspec.structs import replace

from services.trainer.jobs.requirements import gigabytes
from services.trainer.launch.process_group import process_count
from services.trainer.memory.capacity import trains_on_gpu
from services.trainer.stores import Stores, persist, persist_once
from shared.errors import NotFound
from shared.records import JobRecord, WorkerRecord
from shared.schemas.events import Event
from shared.settings import Settings
from shared.states import JobState
from shared.store.jobs import event

log = structlog.get_logger()


async def admit(stores: Stores, job_id: str, memory_bytes: int | None) -> bool:
    """Tell whether a worker with so much memory is to take the job. If not, the job shows what it waits for.

    One whose prompts nobody could answer waits outside, where it keeps no other job from training.
    """
    try:
        record = await persist(lambda: stores.jobs.get(job_id))
    except NotFound:
        return True  # whoever takes it up finds out
    needed = await asyncio.to_thread(needed_bytes, record, stores.settings)
    is_too_large = needed is not None and memory_bytes is not None and needed > memory_bytes
    if not is_too_large and await _has_server(stores, record):
        return True
    if await persist(lambda: stores.leases.held(job_id)):
        return True  # another has it, as whoever takes it up finds out
    if is_too_large:
        assert needed is not None
        log.info("job.too_large", job_id=job_id, needed_bytes=needed, memory_bytes=memory_bytes)
        reason = waiting_reason(needed, await persist(stores.presence.workers))
    else:
        log.info("job.without_server", job_id=job_id, base=record.model)
        reason = f"waits for an inference server for '{record.model}', to have its prompts answered"
    if reason:
        await _explain(stores, job_id, reason)
    return False


async def _has_server(stores: Stores, record: JobRecord) -> bool:
    """Tell whether a server is there for what the job has to have answered; most methods have nothing."""
    if record.method != "reinforcement" or record.status is not JobState.QUEUED:
        return True
    return any(
        replica.base == record.model and not replica.merged and "generate" in replica.tasks
        for replica in await persist(stores.presence.replicas)
    )


def needed_bytes(record: JobRecord, settings: Settings) -> int | None:
    """Return what a worker must have: what the owner says, else the estimate, on a CPU for each of its processes."""
    resolved = record.resolved
    if record.estimated_memory_bytes is None or record.options.memory_gb is not None or resolved is None:
        return record.needed_memory_bytes
    assert resolved.batch_size != "auto"
    processes = 1 if trains_on_gpu() else process_count(resolved.batch_size, settings)
    return record.estimated_memory_bytes * processes


def waiting_reason(needed: int, workers: Sequence[WorkerRecord]) -> str:
    """Say what a job waits for; nothing when a worker that is large enough is about to take it."""
    able = [worker for worker in workers if worker.memory_bytes is None or worker.memory_bytes >= needed]
    if any(worker.state == "idle" for worker in able):
        return ""
    wanted = f"waits for a trainer with {gigabytes(needed)} of memory"
    if able:
        return f"{wanted}; those that have it are at work"
    largest = max((worker.memory_bytes or 0 for worker in workers), default=0)
    return f"{wanted}; the largest one running has {largest / 1e9:.1f} GB"


async def _explain(stores: Stores, job_id: str, reason: str) -> None:
    """Show the reason with the job; an event tells it once, however often it changes."""

    def wait(current: JobRecord) -> JobRecord:
        waits = current.status in (JobState.QUEUED, JobState.RUNNING) and current.waiting_reason != reason
        return replace(current, waiting_reason=reason) if waits else current

    def tell(_: JobRecord) -> list[Event]:
        return [] if was_told else [event(f"The job {reason}", level="warn")]

    try:
        was_told = bool((await persist(lambda: stores.jobs.get(job_id))).waiting_reason)
        await persist_once(lambda nonce: stores.jobs.update(job_id, wait, tell, nonce=nonce))
    except NotFound:
        log.info("job.gone", job_id=job_id)
