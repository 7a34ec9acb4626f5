"""What this replica says about each adapter: the latest word is delivered, however long Redis is away."""

from __future__ import annotations

import asyncio
from itertools import islice

from shared.errors import StoreUnavailable
from shared.records import Residency
from shared.store.registry import Registry

_RETRY_S = 1.0
_BATCH = 200


class Reports:
    """Residency per adapter name; `note` never waits, `run` delivers."""

    def __init__(self, registry: Registry, replica_id: str) -> None:
        self._registry = registry
        self._replica_id = replica_id
        self._pending: dict[str, Residency] = {}
        self._news = asyncio.Event()

    def note(self, name: str, residency: Residency) -> None:
        """Queue a word about an adapter; an undelivered older one is replaced."""
        self._pending[name] = residency
        self._news.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self.flush()
            except StoreUnavailable:
                self._news.set()
                await asyncio.sleep(_RETRY_S)

    async def flush(self) -> None:
        """Deliver the oldest of what is pending. Raises StoreUnavailable; what was not delivered stays pending."""
        batch = dict(islice(self._pending.items(), _BATCH))
        if not batch:
            return
        await self._registry.acknowledge(self._replica_id, batch)
        for name, residency in batch.items():
            if self._pending.get(name) is residency:
                del self._pending[name]
        if self._pending:
            self._news.set()
