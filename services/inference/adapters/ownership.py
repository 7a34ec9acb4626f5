"""Whether an adapter belongs to this replica, as far as is known of the others."""

from __future__ import annotations

import time
from collections.abc import Sequence

from services.inference.replica import Replica
from shared.placement import owners
from shared.records import ReplicaRecord
from shared.store.presence import Presence

_FRESH_S = 1.0


class Ownership:
    """Asks who is alive at most once a second."""

    def __init__(self, presence: Presence, replica: Replica) -> None:
        self._presence = presence
        self._replica = replica
        self._others: Sequence[ReplicaRecord] = ()
        self._asked_at = -_FRESH_S

    async def includes(self, model: str) -> bool:
        """Tell whether this replica is one of a model's owners. Raises StoreUnavailable."""
        ours = self._replica.record
        if time.monotonic() - self._asked_at >= _FRESH_S:
            alive = await self._presence.replicas()
            self._others = [other for other in alive if other.id != ours.id and other.state == "ready"]
            self._asked_at = time.monotonic()
        candidates = [ours, *(other for other in self._others if other.base == ours.base)]
        return any(owner.id == ours.id for owner in owners(candidates, model))
