"""For whom the models of an alias are, where some are for a few API keys only."""

from __future__ import annotations

from collections.abc import Sequence

from shared.model_records import Access
from shared.records import BaseRecord
from shared.schemas.aliases import ShadowPair
from shared.store.registry import Known, Registry
from shared.store.shadow_pairs import PairStore

_READ_AT_ONCE = 20


def warning_of(before: Known | None, new: Sequence[Known]) -> str | None:
    """Say which of the models that an alias gets are for fewer keys than the one that it pointed to; None for none."""
    narrower = [f"'{_name(one)}'" for one in new if before is not None and _is_narrower(before, one)]
    if before is None or not narrower:
        return None
    return (
        f"Not every API key that may use '{_name(before)}' may use {' and '.join(narrower)}. Requests of the others "
        "are refused with 404 when the alias points to such a model, and pass over such a canary or shadow."
    )


async def readable_pairs(
    pairs: PairStore, registry: Registry, uid: str, access: Access, *, after: str | None, limit: int, now: float
) -> tuple[Sequence[ShadowPair], bool]:
    """Return a page of an alias's pairs both of whose models the key may use, and whether there are more.

    Pairs of models that are gone are for keys with the scope `admin` alone: whom these were for is forgotten. Raises
    NotFound when `after` is no pair's id.
    """
    if access.is_admin:
        return await pairs.list(uid, after=after, limit=limit, now=now)
    usable: dict[str, bool] = {}
    found: list[ShadowPair] = []
    more = True
    while more and len(found) <= limit:
        page, more = await pairs.list(uid, after=after, limit=max(limit, _READ_AT_ONCE), now=now)
        for name in {side.model for pair in page for side in (pair.answer, pair.shadow)} - usable.keys():
            usable[name] = (await registry.find(name, access)).own is not None
        found += [pair for pair in page if usable[pair.answer.model] and usable[pair.shadow.model]]
        after = page[-1].id if page else after
    return found[:limit], len(found) > limit


def _is_narrower(before: Known, after: Known) -> bool:
    old, new = _allowed_keys(before), _allowed_keys(after)
    return new is not None and (old is None or not set(old) <= set(new))


def _allowed_keys(known: Known) -> list[str] | None:
    return None if known.settings is None else known.settings.allowed_keys


def _name(known: Known) -> str:
    return known.model.id if isinstance(known.model, BaseRecord) else known.model.name
