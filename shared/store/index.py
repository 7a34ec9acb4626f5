"""Ordered sets of ids, paged by the last id seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from shared import keys
from shared.errors import NotFound
from shared.store.client import Client

T = TypeVar("T")

REMEMBER_S = 3600
"""For how long one may page behind an id that was removed; scripts/prelude.lua has the same."""


async def next_sequence(client: Client) -> int:
    """Return a number larger than every one before: the order of creation, finer than the clock."""
    return int(await client.call("INCR", keys.SEQUENCE))


async def page(
    client: Client, key: str, *, after: str | None, limit: int, newest_first: bool = True
) -> tuple[list[str], bool]:
    """Return up to `limit` ids behind `after`, and whether there are more. O(log n + limit).

    Raises NotFound when `after` is not in the set and was not taken out of it within the last hour.
    """
    # By score, not by rank: ranks move when others are removed between two commands.
    bound = None if after is None else f"({await _place(client, key, after)}"
    span = (bound or "+inf", "-inf", "BYSCORE", "REV") if newest_first else (bound or "-inf", "+inf", "BYSCORE")
    found = await client.call("ZRANGE", key, *span, "LIMIT", 0, limit + 1)
    ids = [member.decode() for member in found]
    return ids[:limit], len(ids) > limit


async def _place(client: Client, key: str, member: str) -> float:
    score = await client.call("ZSCORE", key, member)
    return await former_place(client, key, member) if score is None else float(score)


async def former_place(client: Client, key: str, member: str) -> float:
    """Return the score that a member had which was removed within the last hour. Raises NotFound."""
    score = await client.call("GET", keys.place(key, member))
    if score is None:
        raise NotFound(f"No such object to list after: {member[:100]}", param="after")
    return float(score)


async def leave(client: Client, key: str, members: Sequence[str], *, delete: Sequence[str] = ()) -> None:
    """Take members out of the set, and delete keys in the same step; one may page behind them for another hour."""
    await client.script("leave_list", [key, *delete], [keys.place(key, ""), *members])


async def records(
    client: Client,
    key: str,
    record_key: Callable[[str], str],
    decode: Callable[[bytes], T],
    *,
    after: str | None,
    limit: int,
    keep: Callable[[T], bool] = lambda _: True,
    newest_first: bool = True,
) -> tuple[list[T], bool]:
    """Return up to `limit` records that `keep` accepts, behind the id `after`, and whether there are more.

    Raises NotFound when `after` is not in the set.
    """
    found: list[T] = []
    more = True
    while more and len(found) <= limit:
        ids, more = await page(client, key, after=after, limit=max(limit, 100), newest_first=newest_first)
        after = ids[-1] if ids else after
        raws = await client.call("MGET", *map(record_key, ids)) if ids else []
        found += filter(keep, (decode(raw) for raw in raws if raw is not None))
    return found[:limit], len(found) > limit


async def replace(client: Client, key: str, change: Callable[[bytes], bytes]) -> bool:
    """Apply `change` to the record in `key`, again whenever somebody else wrote meanwhile; False if there is none."""
    while True:
        current = await client.call("GET", key)
        if current is None:
            return False
        outcome = await client.script("replace_record", [key], [current, change(current)])
        if outcome != 0:
            return bool(outcome == 1)
