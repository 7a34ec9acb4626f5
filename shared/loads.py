"""How busy each inference server is: what it said at its last heartbeat, and what it was sent since then."""

from __future__ import annotations

from shared.records import ReplicaRecord


class Loads:
    """Counts what this process sends; a heartbeat that comes later includes it."""

    def __init__(self) -> None:
        self._sent: dict[str, tuple[int, int]] = {}

    def note(self, replica: ReplicaRecord) -> None:
        """Count a request that is sent to a server."""
        self._sent[replica.id] = (replica.beat, self._sent_since(replica) + 1)

    def of(self, replica: ReplicaRecord) -> int:
        """Return how many requests a server probably has."""
        return replica.running + self._sent_since(replica)

    def keep(self, alive: frozenset[str]) -> None:
        """Forget servers that are gone."""
        for replica_id in self._sent.keys() - alive:
            del self._sent[replica_id]

    def _sent_since(self, replica: ReplicaRecord) -> int:
        beat, count = self._sent.get(replica.id, (replica.beat, 0))
        return count if beat == replica.beat else 0
