"""Ordered sets of ids, paged by the last id seen."""

from __future__ import annotations

from shared import keys
from shared.errors import NotFound
from shared.store.client import Client


async def next_sequence(client: Client) -> int:
    """Return a number larger than every one before: the order of creation, finer than the clock."""
    return int(await client.call("INCR", keys.SEQUENCE))


async def page(
    client: Client, key: str, *, after: str | None, limit: int, newest_first: bool = True
) -> tuple[list[str], bool]:
    """Return up to `limit` ids behind `after`, and whether there are more. O(log n + limit).

    Raises NotFound when `after` is not in the set.
    """
    start = 0
    if after is not None:
        rank = await client.call("ZREVRANK" if newest_first else "ZRANK", key, after)
        if rank is None:
            raise NotFound(f"No such object to list after: {after}", param="after")
        start = int(rank) + 1
    found = await client.call("ZREVRANGE" if newest_first else "ZRANGE", key, start, start + limit)
    ids = [member.decode() for member in found]
    return ids[:limit], len(ids) > limit
