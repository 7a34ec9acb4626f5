"""What each change makes of an alias, and what its history says of it."""

from __future__ import annotations

import time

from msgspec import UNSET
from msgspec.structs import replace

from shared.alias_records import AliasRecord, SetBy
from shared.promotion_records import PromotionRecord
from shared.records import KeyRecord
from shared.schemas.aliases import Action, AliasRevision, Canary, UpdateAlias
from shared.store.aliases import Change


def updated(record: AliasRecord, wanted: UpdateAlias, caller: KeyRecord) -> Change | None:
    """Set what is given; None when that is what there is."""
    changed = record
    if wanted.model is not UNSET:
        changed = _pointed(changed, wanted.model)
    if wanted.canary is not UNSET:
        changed = _with_canary(changed, wanted.canary)
    changed = replace(
        changed,
        description=record.description if wanted.description is UNSET else wanted.description,
        shadow=record.shadow if wanted.shadow is UNSET else wanted.shadow,
        watch=record.watch if wanted.watch is UNSET else wanted.watch,
    )
    changed = _with_monitor(_with_gate(changed, wanted, caller), wanted, caller)
    changed = _tidied(changed)
    return None if changed == record else _entered(record, changed, _action(record, changed), wanted.reason, caller)


def promoted(record: AliasRecord, canary: Canary, reason: str, caller: KeyRecord) -> Change:
    """Point the alias to its canary."""
    return _entered(record, _tidied(_pointed(record, canary.model)), "promoted", reason, caller)


def pointed_back(record: AliasRecord, model: str, reason: str, caller: KeyRecord | None = None) -> Change:
    """Point the alias to a model of before, and take the canary out; this move is not watched."""
    back = replace(_tidied(replace(_pointed(record, model), canary=None)), watched=False)
    return _entered(record, back, "rolled_back", reason, caller)


def gate_passed(record: AliasRecord, promotion: PromotionRecord) -> Change:
    """Point the alias to a model that has passed its gate."""
    reason = "; ".join(part for part in (promotion.reason, promotion.message) if part)
    changed, entry = _entered(record, _tidied(_pointed(record, promotion.model)), "promoted", reason, None)
    by_key = replace(entry, automatic=False, key_id=promotion.key_id, key_name=promotion.key_name)
    return changed, _decided(by_key, promotion)


def gate_lost(record: AliasRecord, promotion: PromotionRecord, model: str) -> Change:
    """Point the alias back to a model that had passed its gate, since its own does not any more."""
    changed, entry = pointed_back(record, model, f"'{promotion.model}' does not pass its gate: {promotion.message}")
    return changed, _decided(entry, promotion)


def without_canary(record: AliasRecord, reason: str) -> Change:
    return _entered(record, replace(record, canary=None), "canary_removed", reason, None)


def without_watching(record: AliasRecord, reason: str) -> Change:
    return _entered(record, replace(record, watched=False), "watch_ended", reason, None)


def first_entry(record: AliasRecord, reason: str, caller: KeyRecord) -> AliasRevision:
    return _entry(record, "created", previous=None, reason=reason, caller=caller)


def _pointed(record: AliasRecord, model: str) -> AliasRecord:
    if model == record.target:
        return record
    return replace(
        record,
        target=model,
        target_since=record.revision + 1,
        moved_at=int(time.time()),
        previous=record.target,
        watched=True,
    )


def _with_canary(record: AliasRecord, canary: Canary | None) -> AliasRecord:
    """Set the canary; its counts go on when only its share or its limits change."""
    if canary == record.canary:
        return record
    goes_on = canary is not None and record.canary is not None and canary.model == record.canary.model
    return replace(record, canary=canary, canary_since=record.canary_since if goes_on else record.revision + 1)


def _with_gate(record: AliasRecord, wanted: UpdateAlias, caller: KeyRecord) -> AliasRecord:
    if wanted.gate is UNSET or wanted.gate == record.gate:
        return record
    set_by = SetBy(key_id=caller.id, is_admin=caller.access.is_admin, at=int(time.time()))
    return replace(record, gate=wanted.gate, gate_set=None if wanted.gate is None else set_by)


def _with_monitor(record: AliasRecord, wanted: UpdateAlias, caller: KeyRecord) -> AliasRecord:
    if wanted.monitor is UNSET or wanted.monitor == record.monitor:
        return record
    changed = replace(record, monitor=wanted.monitor)
    goes_on = record.monitor_set is not None and changed.goes_on_noting(record)
    since = record.monitor_set.at if goes_on and record.monitor_set is not None else int(time.time())
    set_by = SetBy(key_id=caller.id, is_admin=caller.access.is_admin, at=since)
    return replace(changed, monitor_set=None if wanted.monitor is None else set_by)


def _decided(entry: AliasRevision, promotion: PromotionRecord) -> AliasRevision:
    return replace(entry, promotion_id=promotion.id, eval_run_ids=promotion.run_ids)


def _tidied(record: AliasRecord) -> AliasRecord:
    """Take out a canary or shadow that the alias points to by now."""
    canary, shadow = record.canary, record.shadow
    return replace(
        record,
        canary=None if canary is not None and canary.model == record.target else canary,
        shadow=None if shadow is not None and shadow.model == record.target else shadow,
    )


def _action(before: AliasRecord, after: AliasRecord) -> Action:
    if before.target != after.target:
        return "moved"
    if before.canary == after.canary:
        return "configured"
    return "canary_removed" if after.canary is None else "canary_set"


def _entered(before: AliasRecord, after: AliasRecord, action: Action, reason: str, caller: KeyRecord | None) -> Change:
    record = replace(after, revision=before.revision + 1, updated_at=int(time.time()))
    return record, _entry(record, action, previous=before.target, reason=reason, caller=caller)


def _entry(
    record: AliasRecord, action: Action, *, previous: str | None, reason: str, caller: KeyRecord | None
) -> AliasRevision:
    return AliasRevision(
        id=str(record.revision),
        revision=record.revision,
        created_at=record.updated_at,
        action=action,
        automatic=caller is None,
        key_id=None if caller is None else caller.id,
        key_name=None if caller is None else caller.name,
        previous_model=previous,
        model=record.target,
        canary_model=None if record.canary is None else record.canary.model,
        canary_percent=None if record.canary is None else record.canary.percent,
        shadow_model=None if record.shadow is None else record.shadow.model,
        reason=reason,
    )
