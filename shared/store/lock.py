"""Locks: one process at a time does something; a key that expires unless its holder keeps renewing it."""

from __future__ import annotations

from enum import IntEnum

from shared import ids
from shared.store.client import Client


class Hold(IntEnum):
    """Whose a lock is after it was asked for; what is true is one's own."""

    FOREIGN = 0
    TAKEN = 1
    """Nobody had it just before, but somebody may have had it since this process lost it."""
    RENEWED = 2
    """It was this process's without a break."""


class Lock:
    """A lock named by its key. It expires `ttl_s` after the last claim or renewal, so a dead holder blocks nobody."""

    def __init__(self, client: Client, key: str, *, ttl_s: float) -> None:
        self._client = client
        self._key = key
        self._ttl_ms = int(ttl_s * 1000)
        self.token = ids.new_token()

    async def hold(self) -> Hold:
        """Take or renew it. Raises StoreUnavailable."""
        return Hold(await self._client.script("hold_lock", [self._key], [self.token, self._ttl_ms]))

    async def release(self) -> None:
        """Give it back; nothing happens if it was lost before."""
        await self._client.script("hold_lock", [self._key], [self.token, 0])
