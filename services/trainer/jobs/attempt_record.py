"""What a job's record says of an attempt: begun, handed back by a worker that stops, put down for a pause.

`attempts` counts the attempts that were begun and not ended in order, so in the end the deaths of workers: it goes up
when one begins, and down when it is handed back or put down. It begins anew when the attempt before has left a newer
resume point: a long job outlives many machines, and one that dies at the same place again and again is given up. Every
write is fenced by the lease's token.
"""

from __future__ import annotations

import asyncio
import time

import structlog
from msgspec.structs import replace

from services.trainer import metrics
from services.trainer.jobs.device_time import DeviceTime
from services.trainer.jobs.mirror import reached_step
from services.trainer.stores import Stores, persist_once
from shared.errors import LeaseLost
from shared.records import JobRecord
from shared.schemas.events import Event
from shared.states import TERMINAL, JobState
from shared.store.jobs import event

HAND_BACK_S = 2.0
"""How long a worker that stops tries to hand its job back."""

log = structlog.get_logger()


async def begin(stores: Stores, job_id: str, token: str) -> JobRecord:
    """Take a queued job over, or one whose worker died while it ran; any other comes back as it is."""

    def start(current: JobRecord) -> JobRecord:
        if current.status not in (JobState.QUEUED, JobState.RUNNING):
            return current
        attempts = 1 if reached > current.reached_step else current.attempts + 1
        return replace(
            current,
            status=JobState.RUNNING,
            attempts=attempts,
            reached_step=reached,
            started=True,
            earlier_device_seconds=current.device_seconds,
            device_hour_price=stores.settings.device_hour_price,
            currency=stores.settings.currency,
            waiting_reason="",
        )

    record = await stores.jobs.get(job_id)
    reached = await reached_step(stores, job_id)
    is_first = not (record.started or record.attempts)
    message = "Fine-tuning job started" if is_first else "Fine-tuning job resumed"
    begun = await persist_once(
        lambda nonce: stores.jobs.update(job_id, start, [event(message)], fence=token, nonce=nonce)
    )
    if is_first and begun.status is JobState.RUNNING:
        metrics.QUEUE_SECONDS.observe(time.time() - record.created_at)
    return begun


async def note_time(stores: Stores, job_id: str, token: str, device_time: DeviceTime) -> None:
    """Note what the attempt has taken of its devices so far. Raises LeaseLost."""
    await persist_once(lambda nonce: stores.jobs.update(job_id, device_time.on, fence=token, nonce=nonce))


async def hand_back(stores: Stores, job_id: str, token: str, device_time: DeviceTime) -> None:
    """Put the job back into the queue while this worker stops, within HAND_BACK_S; a paused one stays paused.

    If Redis is away for longer than that, the lease's end does the same, and the attempt counts as a death.
    """

    def requeue(current: JobRecord) -> JobRecord:
        if current.status in TERMINAL:
            return current
        status = JobState.QUEUED if current.status is JobState.RUNNING else current.status
        return _discounted(replace(device_time.on(current), status=status, estimated_finish=None))

    def tell(handed_back: JobRecord) -> list[Event]:
        return [told] if handed_back.status is JobState.QUEUED else []

    told = event("The trainer is stopping; the job goes on from its last checkpoint when it is back", level="warn")
    try:
        async with asyncio.timeout(HAND_BACK_S):
            await persist_once(lambda nonce: stores.jobs.update(job_id, requeue, tell, fence=token, nonce=nonce))
            await device_time.tell()
    except (TimeoutError, LeaseLost) as error:
        log.warning("job.not_handed_back", reason=type(error).__name__)


async def put_down(stores: Stores, job_id: str, token: str, device_time: DeviceTime) -> bool:
    """Note the end of an attempt at a job that ended or was paused. Returns whether it was resumed meanwhile."""

    def discount(current: JobRecord) -> JobRecord:
        timed = device_time.on(current)
        return timed if current.status in {JobState.RUNNING, *TERMINAL} else _discounted(timed)

    left = await persist_once(lambda nonce: stores.jobs.update(job_id, discount, fence=token, nonce=nonce))
    return left.status is JobState.QUEUED


def _discounted(record: JobRecord) -> JobRecord:
    return replace(record, attempts=max(0, record.attempts - 1))
