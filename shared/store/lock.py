"""Locks: one process at a time does something; a key that expires unless its holder keeps renewing it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import TypeVar

from shared import ids
from shared.errors import StoreUnavailable
from shared.store.client import Client

T = TypeVar("T")


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


async def run_under(hold: Callable[[], Awaitable[Hold]], step: Awaitable[T], *, renew_s: float) -> T:
    """Do something while a lock that was taken before is renewed beside it, every `renew_s`, and return its result.

    Raises StoreUnavailable when the lock is lost, which ends the step.
    """
    work, renewing = asyncio.ensure_future(step), asyncio.ensure_future(_renew_forever(hold, renew_s))
    try:
        await asyncio.wait([work, renewing], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            renewing.result()
        return await work
    finally:
        for part in (work, renewing):
            part.cancel()
        await asyncio.gather(work, renewing, return_exceptions=True)


async def _renew_forever(hold: Callable[[], Awaitable[Hold]], renew_s: float) -> None:
    while True:
        await asyncio.sleep(renew_s)
        if await hold() is not Hold.RENEWED:
            raise StoreUnavailable("a lock was lost")
