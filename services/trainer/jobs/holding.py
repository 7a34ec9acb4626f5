"""Holding a job's lease for as long as somebody works on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from services.trainer.stores import Stores, persist
from shared.errors import LeaseLost, StoreUnavailable

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that is being renewed. `token` fences writes; `kept` ends, with LeaseLost, only if another took it."""

    token: str
    kept: asyncio.Task[None]


@asynccontextmanager
async def holding(stores: Stores, job_id: str) -> AsyncIterator[Lease | None]:
    """Claim, renew until the block ends, release. Yields None while somebody else holds the job.

    A LeaseLost that leaves the block ends here: the job is in other hands, which is all there is to say.
    """
    token = await stores.leases.claim(job_id)
    if token is None:
        yield None
        return
    keeper = asyncio.create_task(_renew(stores, job_id, token))
    try:
        yield Lease(token, keeper)
    except LeaseLost:
        log.warning("lease.lost", job_id=job_id)
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        await _release(stores, job_id, token)


async def _renew(stores: Stores, job_id: str, token: str) -> None:
    while True:
        await asyncio.sleep(stores.settings.lease_ttl_s / 4)
        await persist(lambda: stores.leases.renew(job_id, token))


async def _release(stores: Stores, job_id: str, token: str) -> None:
    try:
        await stores.leases.release(job_id, token)
    except StoreUnavailable:
        log.warning("lease.left_to_expire", job_id=job_id)
