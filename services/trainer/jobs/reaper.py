"""Jobs that nobody works on get back into a queue: after a crash, a lost message, or a queue that was emptied."""

from __future__ import annotations

import asyncio

import structlog
from arq.connections import ArqRedis
from redis.exceptions import RedisError

from services.trainer import metrics
from services.trainer.jobs.publishing import withdraw
from services.trainer.stores import Stores
from shared import queue
from shared.errors import NotFound, StoreUnavailable
from shared.states import TERMINAL, JobState

PERIOD_S = 5.0
CLAIM_S = 1.5
"""How long a worker may take from arq's mark to the job's lease, or to a heartbeat that names the job as waiting.

A mark without either is a dead worker's.
"""

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
    """Queue every unfinished job that has no lease and is not paused; one that waits in its queue stays there once.

    Messages of jobs that have ended are removed: those that a dead worker had in hand would never be taken again, and
    arq looks at the first few of a queue only. Such a job may have been cancelled while its model was published; that
    is taken back.
    """
    active = await stores.jobs.active()
    for job_id in active:
        if not await stores.leases.held(job_id):
            await _requeue(stores, arq, job_id)
    await _clear(stores, arq, set(active))


async def _requeue(stores: Stores, arq: ArqRedis, job_id: str) -> None:
    try:
        record = await stores.jobs.get(job_id)
    except NotFound:
        return
    if record.status is JobState.PAUSED or record.status in TERMINAL:
        return
    function: queue.Function = "validate" if record.status is JobState.VALIDATING_FILES else "train"
    if await queue.marked(arq, function, job_id):
        await asyncio.sleep(CLAIM_S)
        waiting = {waits for worker in await stores.presence.workers() for waits in worker.waiting_job_ids}
        if job_id in waiting or await stores.leases.held(job_id):
            return
        await queue.unmark(arq, function, job_id)
        metrics.REQUEUES.labels(function).inc()
        log.warning("job.requeued", job_id=job_id, function=function)
    await stores.enqueue(record)


async def _clear(stores: Stores, arq: ArqRedis, active: set[str]) -> None:
    for function, name in queue.QUEUES.items():
        for job_id in await queue.messages(arq, name):
            if job_id not in active and await _is_over(stores, job_id):
                log.info("queue.cleared", job_id=job_id, function=function)
                await queue.remove(arq, function, job_id)


async def _is_over(stores: Stores, job_id: str) -> bool:
    """Whether nobody works on a job any more, and nobody will; what one that did not succeed published is withdrawn."""
    if await stores.leases.held(job_id):
        return False
    try:
        record = await stores.jobs.get(job_id)
    except NotFound:
        return True
    if record.status in TERMINAL - {JobState.SUCCEEDED}:
        await withdraw(stores, record)
    return record.status in TERMINAL
