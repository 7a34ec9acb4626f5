"""Who works on a job: a key that expires unless its holder keeps renewing it."""

from __future__ import annotations

from shared import ids, keys
from shared.errors import LeaseLost
from shared.store.client import Client


class LeaseStore:
    """Leases on jobs. The token that claim() returns fences the holder's writes (see JobStore)."""

    def __init__(self, client: Client, *, ttl_s: float) -> None:
        self._client = client
        self._ttl_ms = int(ttl_s * 1000)

    async def claim(self, job_id: str) -> str | None:
        """Return a token, or None while somebody else holds the job."""
        token = ids.new_token()
        claimed = await self._client.call("SET", keys.job_lease(job_id), token, "NX", "PX", self._ttl_ms)
        return token if claimed else None

    async def renew(self, job_id: str, token: str) -> None:
        """Hold the job for another period. Raises LeaseLost if it was given away meanwhile."""
        if not await self._client.script("renew_lease", [keys.job_lease(job_id)], [token, self._ttl_ms]):
            raise LeaseLost(f"{job_id} is owned by another worker now")

    async def release(self, job_id: str, token: str) -> None:
        """Give the job back; nothing happens if the lease was lost before."""
        await self._client.script("renew_lease", [keys.job_lease(job_id)], [token, 0])

    async def held(self, job_id: str) -> bool:
        """Tell whether anybody holds the job."""
        return bool(await self._client.call("EXISTS", keys.job_lease(job_id)))
