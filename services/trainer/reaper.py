"""Jobs that nobody works on get back into a queue: after a crash, a lost message, or a queue that was emptied."""

from __future__ import annotations

import asyncio

import structlog
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix
from redis.exceptions import RedisError

from services.trainer.stores import Stores
from shared.errors import LeaseLost, NotFound, StoreUnavailable
from shared.states import TERMINAL, JobState

PERIOD_S = 5.0

log = structlog.get_logger()


async def reap_forever(stores: Stores, arq: ArqRedis) -> None:
    """Reap at once and then every five seconds."""
    while True:
        try:
            await reap(stores, arq)
        except (StoreUnavailable, RedisError, OSError) as error:
            log.warning("reaper.store_unavailable", reason=type(error).__name__)
        await asyncio.sleep(PERIOD_S)


async def reap(stores: Stores, arq: ArqRedis) -> None:
    """Queue every unfinished job that has no lease and is not paused; one that waits in its queue stays there once."""
    for job_id in await stores.jobs.active():
        if not await stores.leases.held(job_id):
            await _requeue(stores, arq, job_id)


async def _requeue(stores: Stores, arq: ArqRedis, job_id: str) -> None:
    try:
        record = await stores.jobs.get(job_id)
    except (NotFound, LeaseLost):
        return
    if record.status is JobState.PAUSED or record.status in TERMINAL:
        return
    function = "validate" if record.status is JobState.VALIDATING_FILES else "train"
    # arq marks a job as in progress for the longest time a job may take; a worker that died leaves the mark behind.
    if await arq.delete(f"{in_progress_key_prefix}{function}:{job_id}"):
        log.warning("job.requeued", job_id=job_id, function=function)
    await stores.enqueue(record)
