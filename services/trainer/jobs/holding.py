"""Holding a job's lease for as long as somebody works on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.trainer.lease_file import LeaseFile, now_s
from services.trainer.stores import Stores, persist
from shared.errors import LeaseLost, StoreUnavailable

log = structlog.get_logger()


@dataclass(slots=True)
class Lease:
    """A lease that is being renewed. `token` fences writes; `kept` ends, with LeaseLost, only if another took it."""

    token: str
    kept: asyncio.Task[None]
    _holding: _Holding

    async def show(self, folder: Path) -> None:
        """Let the training process of this folder see how long the lease lasts, from now on. Raises LeaseLost."""
        self._holding.file = LeaseFile(folder, self.token)
        await persist(lambda: self._holding.renew(self.token))


class _Holding:
    """Renews one lease. `until_s` is when it runs out at the latest, in seconds of lease_file.now_s()."""

    def __init__(self, stores: Stores, job_id: str) -> None:
        self._leases = stores.leases
        self._job_id = job_id
        self.until_s = 0.0
        self.file: LeaseFile | None = None

    async def claim(self) -> str | None:
        asked_s = now_s()
        token = await self._leases.claim(self._job_id)
        self.until_s = asked_s + self._leases.ttl_s
        return token

    async def renew_forever(self, token: str) -> None:
        while True:
            await asyncio.sleep(self._leases.ttl_s / 4)
            await persist(lambda: self.renew(token))

    async def renew(self, token: str) -> None:
        asked_s = now_s()
        await self._leases.renew(self._job_id, token)
        self.until_s = asked_s + self._leases.ttl_s
        if self.file is not None:
            self.file.write(self.until_s)


@asynccontextmanager
async def holding(stores: Stores, job_id: str) -> AsyncIterator[Lease | None]:
    """Claim, renew until the block ends, release. Yields None while somebody else holds the job.

    A LeaseLost that leaves the block ends here: the job is in other hands, which is all there is to say.
    """
    holding = _Holding(stores, job_id)
    token = await holding.claim()
    if token is None:
        yield None
        return
    keeper = asyncio.create_task(holding.renew_forever(token))
    try:
        yield Lease(token, keeper, holding)
    except LeaseLost:
        log.warning("lease.lost", job_id=job_id)
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        await _release(stores, job_id, token)


async def _release(stores: Stores, job_id: str, token: str) -> None:
    try:
        await stores.leases.release(job_id, token)
    except StoreUnavailable:
        log.warning("lease.left_to_expire", job_id=job_id)
