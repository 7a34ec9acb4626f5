"""What an owner may do to a job under way: cancel, pause, resume. The record says what is wanted; workers follow it."""

from __future__ import annotations

import time

import structlog
from msgspec.structs import replace

from shared.errors import StoreUnavailable, TransitionRefused
from shared.queue import Queue
from shared.records import JobRecord
from shared.states import TERMINAL, JobState
from shared.store.jobs import JobStore, event

_log = structlog.get_logger()


class JobControl:
    """Changes the state of jobs on their owner's behalf."""

    def __init__(self, jobs: JobStore, queue: Queue) -> None:
        self._jobs = jobs
        self._queue = queue

    async def cancel(self, job_id: str, *, project: str) -> JobRecord:
        """Stop a job; twice is the same as once. Raises NotFound, and TransitionRefused for one that has ended."""

        def end(current: JobRecord) -> JobRecord:
            if current.status is JobState.CANCELLED:
                return current
            _refuse_ended(current, "cancelled")
            return replace(current, status=JobState.CANCELLED, finished_at=int(time.time()), estimated_finish=None)

        record = await self._jobs.update(job_id, end, [event("The job was cancelled")], project=project)
        _log.info("job.cancelled", job_id=job_id)
        return record

    async def pause(self, job_id: str, *, project: str) -> JobRecord:
        """Stop a job until it is resumed; its training process saves what it has. Twice is the same as once.

        Raises NotFound, and TransitionRefused for a job that has ended.
        """

        def hold(current: JobRecord) -> JobRecord:
            if current.status is JobState.PAUSED:
                return current
            _refuse_ended(current, "paused")
            return replace(current, status=JobState.PAUSED, estimated_finish=None)

        record = await self._jobs.update(job_id, hold, [event("The job was paused")], project=project)
        _log.info("job.paused", job_id=job_id)
        return record

    async def resume(self, job_id: str, *, project: str) -> JobRecord:
        """Let a paused job go on from where it was. Raises NotFound, and TransitionRefused unless it is paused."""

        def release(current: JobRecord) -> JobRecord:
            if current.status is not JobState.PAUSED:
                raise TransitionRefused(f"Job {job_id} is {current.status.value}; only a paused job can be resumed.")
            waiting = JobState.VALIDATING_FILES if current.resolved is None else JobState.QUEUED
            return replace(current, status=waiting)

        record = await self._jobs.update(job_id, release, [event("The job was resumed")], project=project)
        await self._enqueue(record)
        _log.info("job.resumed", job_id=job_id)
        return record

    async def _enqueue(self, record: JobRecord) -> None:
        """Ask a worker to look at it; one that is still putting the job down is asked again by the reaper."""
        try:
            await self._queue.put(record, order=await self._jobs.order(record))
        except StoreUnavailable:
            _log.warning("job.not_enqueued", job_id=record.id)


def _refuse_ended(current: JobRecord, wish: str) -> None:
    if current.status in TERMINAL:
        raise TransitionRefused(f"Job {current.id} has already {_ENDED[current.status]}; it cannot be {wish}.")


_ENDED = {
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "been cancelled",
}
