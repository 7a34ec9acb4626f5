"""Counting what adapters are used for, and telling the store now and then."""

from __future__ import annotations

import asyncio
from collections import Counter

from shared.errors import StoreUnavailable
from shared.store.adapter_uses import AdapterUses

_TELL_EVERY_S = 10.0


class Uses:
    """Uses of one base's adapters since they were last told."""

    def __init__(self, store: AdapterUses, base_id: str) -> None:
        self._store = store
        self._base_id = base_id
        self._counts: Counter[str] = Counter()

    def note(self, name: str) -> None:
        self._counts[name] += 1

    async def most_used(self, limit: int) -> list[str]:
        """List the adapters that all replicas use most. Raises StoreUnavailable."""
        return await self._store.most_used(self._base_id, limit)

    async def run(self) -> None:
        """Tell until cancelled; what could not be told is told later."""
        while True:
            await asyncio.sleep(_TELL_EVERY_S)
            await self._tell()

    async def _tell(self) -> None:
        counts, self._counts = self._counts, Counter()
        if not counts:
            return
        try:
            await self._store.add(self._base_id, counts)
        except StoreUnavailable:
            self._counts.update(counts)
