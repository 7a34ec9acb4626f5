"""Takes a canary out, or a moved alias back, when its model crosses the limits that were set for it."""

from __future__ import annotations

import time
from collections import Counter

import structlog

from services.api.aliases import changes
from services.api.aliases.tally import Tally, tallies
from shared.alias_records import AliasRecord
from shared.audit_records import AuditRecord
from shared.errors import NotFound
from shared.model_records import Access
from shared.schemas.aliases import TrafficLimits
from shared.store.alias_traffic import TrafficStore
from shared.store.aliases import AliasStore, Change
from shared.store.audit import AuditStore
from shared.store.registry import Registry

_log = structlog.get_logger()

_NOTHING = Tally(Counter())


class Guard:
    """Any number of processes may look at the same alias at once: one of them changes it."""

    def __init__(self, aliases: AliasStore, traffic: TrafficStore, registry: Registry, audit: AuditStore) -> None:
        self._aliases = aliases
        self._traffic = traffic
        self._registry = registry
        self._audit = audit

    async def check(self, name: str, *, project: str) -> None:
        """Compare canary and target of an alias with their limits, and act. Raises StoreUnavailable."""
        record = await self._aliases.find(name, project=project)
        if record is None:
            return
        now = time.time()
        if record.canary is not None and record.canary.limits is not None:
            reason = await self._crossed(record, record.canary_since, record.canary.model, record.canary.limits, now)
            if reason is not None:
                await self._change(record, changes.without_canary(record, reason), reason)
                return
        if record.watch is not None and record.watches(now):
            reason = await self._crossed(record, record.target_since, record.target, record.watch.limits, now)
            if reason is not None:
                await self._change(record, await self._taken_back(record, reason), reason)

    async def _crossed(
        self, record: AliasRecord, since: int, model: str, limits: TrafficLimits, now: float
    ) -> str | None:
        counted = await self._traffic.read(record.uid, window_s=limits.window_s, now=now)
        return tallies(counted, since=since).get(model, _NOTHING).crossed(limits)

    async def _taken_back(self, record: AliasRecord, reason: str) -> Change:
        assert record.previous is not None
        access = Access(project=record.project, is_admin=True)
        if (await self._registry.find(record.previous, access)).own is None:
            return changes.without_watching(record, f"{reason}; '{record.previous}' is gone, so the alias stays")
        return changes.pointed_back(record, record.previous, reason)

    async def _change(self, record: AliasRecord, change: Change, reason: str) -> None:
        changed, entry = change
        try:
            found = await self._aliases.change(
                record.name, lambda current: change if current == record else None, project=record.project
            )
        except NotFound:
            return
        if found != changed:  # somebody else was faster; what is true now is looked at next time
            return
        await self._audit.add(
            AuditRecord(
                type="alias.limit_crossed",
                at=time.time(),
                project=record.project,
                resources=(record.name,),
                reason=reason,
            )
        )
        _log.warning("alias.limit_crossed", alias=record.name, action=entry.action, model=changed.target, reason=reason)
