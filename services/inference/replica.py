"""This server's entry among the living: a record with a short life, renewed every second with what is true now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Literal

import structlog
from msgspec.structs import replace

from services.inference import tasks
from shared.errors import StoreUnavailable
from shared.records import ReplicaRecord
from shared.store.presence import Presence

log = structlog.get_logger()

State = Literal["waiting", "starting", "ready", "draining"]

_BEAT_S = 1.0
_TTL_S = 5.0
STARTUP_TTL_S = 120.0
"""While the engine starts, nothing else runs in this process: the last heartbeat before it has to last."""


class Replica:
    """Holds the record and writes it; Redis being away is no reason to stop serving."""

    def __init__(self, presence: Presence, record: ReplicaRecord) -> None:
        self.record = record
        self._presence = presence
        self._details: Callable[[], dict[str, Any]] = dict
        self._turn = asyncio.Lock()
        self._beating: asyncio.Task[None] | None = None

    def describe_with(self, details: Callable[[], dict[str, Any]]) -> None:
        """Have fields of the record computed anew at every heartbeat."""
        self._details = details

    def set(self, state: State, reason: str = "", **changes: Any) -> None:
        """Change the record; the next heartbeat carries it."""
        if (state, reason) != (self.record.state, self.record.reason):
            log.info("replica.state", state=state, reason=reason)
        self.record = replace(self.record, state=state, reason=reason, **changes)

    def start(self) -> None:
        """Begin the heartbeat."""
        self._beating = asyncio.create_task(self._beat_forever())

    async def beat(self, ttl_s: float = _TTL_S) -> None:
        """Write the record now; it vanishes `ttl_s` later unless written again."""
        async with self._turn:
            self.record = replace(self.record, beat=self.record.beat + 1, **self._details())
            try:
                await self._presence.beat_replica(self.record, ttl_s=ttl_s)
            except StoreUnavailable as away:
                log.warning("replica.heartbeat_failed", reason=away.message)
            except Exception:  # a server that serves and is silent would be taken for dead, for ever
                log.exception("replica.heartbeat_failed")

    async def leave(self) -> None:
        """Stop the heartbeat and withdraw the record, so that the gateway sends no more requests here."""
        if self._beating is None:
            return
        await tasks.end([self._beating])
        self._beating = None
        async with self._turn:
            try:
                await self._presence.forget_replica(self.record.id)
            except StoreUnavailable as away:
                log.warning("replica.leave_failed", reason=away.message)

    async def _beat_forever(self) -> None:
        while True:
            await self.beat()
            await asyncio.sleep(_BEAT_S)


def new_record(replica_id: str, **fields: Any) -> ReplicaRecord:
    return ReplicaRecord(id=replica_id, url="", base="", state="waiting", started_at=time.time(), **fields)
