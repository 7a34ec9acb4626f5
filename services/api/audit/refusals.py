"""Requests that were not let in, in the audit log: the first of a kind at once, the rest of its minute as one entry.

A guesser must not push everybody else's entries out of the log: only so many sources are told apart in a minute.
"""

from __future__ import annotations

import asyncio
import time

import structlog
from msgspec.structs import replace

from services.api.background import Background
from shared.audit_records import AuditRecord
from shared.errors import Unavailable
from shared.store.audit import AuditStore

_log = structlog.get_logger()

PERIOD_S = 60.0
_SOURCES = 10
_FAILED = "login.failed"


class Refusals:
    """Counts refusals by key, address and reason."""

    def __init__(self, store: AuditStore, *, period_s: float = PERIOD_S) -> None:
        self._store = store
        self._period_s = period_s
        self._counts: dict[AuditRecord, int] = {}
        self._background = Background()

    def note(self, *, key_id: str, address: str, reason: str, project: str = "") -> None:
        """Count a refusal, whose `reason` is the code of its error."""
        kind = AuditRecord(
            type=_FAILED, at=0.0, outcome="refused", key_id=key_id, address=address, reason=reason, project=project
        )
        if kind not in self._counts and len(self._counts) >= _SOURCES:
            kind = AuditRecord(type=_FAILED, at=0.0, outcome="refused", reason="several")
        if kind in self._counts:
            self._counts[kind] += 1
            return
        self._counts[kind] = 0
        self._background.start(self._tell(kind))

    async def close(self) -> None:
        """Enter what has been counted."""
        await self._background.close()

    async def _tell(self, kind: AuditRecord) -> None:
        await self._enter(kind, 1)
        try:
            await asyncio.sleep(self._period_s)
        finally:
            more = self._counts.pop(kind)
            if more:
                await self._enter(kind, more)

    async def _enter(self, kind: AuditRecord, count: int) -> None:
        try:
            await self._store.add(replace(kind, at=time.time(), count=count))
        except Unavailable as error:
            _log.warning("audit.refusals_lost", count=count, reason=error.message)
