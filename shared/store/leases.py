"""Who works on a job or batch: a key that expires unless its holder keeps renewing it."""

from __future__ import annotations

from collections.abc import Callable

from shared import ids, keys
from shared.errors import LeaseLost
from shared.store.client import Client


class LeaseStore:
    """Leases on jobs, or on what else `key` names. The token that claim() returns fences the holder's writes."""

    def __init__(self, client: Client, *, ttl_s: float, key: Callable[[str], str] = keys.job_lease) -> None:
        self._client = client
        self._key = key
        self._ttl_ms = int(ttl_s * 1000)

    async def claim(self, object_id: str) -> str | None:
        """Return a token, or None while somebody else holds it."""
        token = ids.new_token()
        claimed = await self._client.call("SET", self._key(object_id), token, "NX", "PX", self._ttl_ms)
        return token if claimed else None

    async def renew(self, object_id: str, token: str) -> None:
        """Hold it for another period. Raises LeaseLost if it was given away meanwhile."""
        if not await self._client.script("renew_lease", [self._key(object_id)], [token, self._ttl_ms]):
            raise LeaseLost(f"{object_id} is owned by another worker now")

    async def release(self, object_id: str, token: str) -> None:
        """Give it back; nothing happens if the lease was lost before."""
        await self._client.script("renew_lease", [self._key(object_id)], [token, 0])

    async def held(self, object_id: str) -> bool:
        """Tell whether anybody holds it."""
        return bool(await self._client.call("EXISTS", self._key(object_id)))
