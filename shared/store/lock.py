"""Locks: one process at a time does something; a key that expires unless its holder keeps renewing it."""

from __future__ import annotations

from shared import ids
from shared.store.client import Client


class Lock:
    """A lock named by its key. It expires `ttl_s` after the last claim or renewal, so a dead holder blocks nobody."""

    def __init__(self, client: Client, key: str, *, ttl_s: float) -> None:
        self._client = client
        self._key = key
        self._ttl_ms = int(ttl_s * 1000)
        self.token = ids.new_token()

    async def hold(self) -> bool:
        """Take or renew it; False while somebody else has it."""
        return bool(await self._client.script("hold_lock", [self._key], [self.token, self._ttl_ms]))

    async def release(self) -> None:
        """Give it back; nothing happens if it was lost before."""
        await self._client.script("hold_lock", [self._key], [self.token, 0])
