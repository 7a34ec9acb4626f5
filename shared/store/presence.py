"""Who is alive: replicas and workers, each a record that vanishes with its heartbeat."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from shared import keys
from shared.records import ReplicaRecord, WorkerRecord
from shared.store.client import Argument, Client

_encode = msgspec.json.Encoder().encode
_decode_replica = msgspec.json.Decoder(ReplicaRecord).decode
_decode_worker = msgspec.json.Decoder(WorkerRecord).decode

REMEMBERED_S = 300.0
"""For so long it is known when somebody was heard who is silent now. Every look for the living meets those, too."""


class Presence:
    """Heartbeats."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def beat_replica(self, record: ReplicaRecord, *, ttl_s: float = 5.0) -> None:
        await self._beat(keys.REPLICAS, record.id, keys.replica(""), _encode(record), ttl_s)

    async def beat_worker(self, record: WorkerRecord, *, ttl_s: float = 5.0) -> None:
        await self._beat(keys.WORKERS, record.id, keys.worker(""), _encode(record), ttl_s)

    async def forget_replica(self, replica_id: str) -> None:
        await self._client.together([("DEL", keys.replica(replica_id)), ("ZREM", keys.REPLICAS, replica_id)])

    async def forget_worker(self, worker_id: str) -> None:
        await self._client.together([("DEL", keys.worker(worker_id)), ("ZREM", keys.WORKERS, worker_id)])

    async def replicas(self) -> Sequence[ReplicaRecord]:
        """List the inference servers whose heartbeat is fresh, by id."""
        alive = [_decode_replica(raw) for raw in await self._alive(keys.REPLICAS, keys.replica(""))]
        return sorted(alive, key=lambda replica: replica.id)

    async def seconds_without_replica(self) -> float:
        """Tell how long ago the last replica was heard that did not say goodbye; infinite if none is remembered."""
        (seconds, microseconds), last = await self._client.together(
            [("TIME",), ("ZREVRANGE", keys.REPLICAS, 0, 0, "WITHSCORES")]
        )
        return seconds + microseconds / 1e6 - float(last[1]) if last else math.inf

    async def workers(self) -> Sequence[WorkerRecord]:
        """List the trainers whose heartbeat is fresh, by id."""
        alive = [_decode_worker(raw) for raw in await self._alive(keys.WORKERS, keys.worker(""))]
        return sorted(alive, key=lambda worker: worker.id)

    async def _beat(self, index: str, member: str, record_keys: str, record: bytes, ttl_s: float) -> None:
        arguments: list[Argument] = [record, int(ttl_s * 1000), member, record_keys, REMEMBERED_S]
        await self._client.script("beat", [record_keys + member, index], arguments)

    async def _alive(self, index: str, record_keys: str) -> list[bytes]:
        found: list[bytes] = await self._client.script("list_alive", [index], [record_keys])
        return found
