"""Whether the database keeps what it has acknowledged: what is set there that would lose it."""

from __future__ import annotations

from collections.abc import Mapping

from redis.exceptions import ResponseError

from shared.store.client import Client

_ASKED = ("appendonly", "save", "maxmemory", "maxmemory-policy")
_KEEPS_ALL = "noeviction"


async def look_for_losses(client: Client) -> list[str]:
    """Return a phrase for each setting by which the server may lose records; none where it does not say.

    Raises StoreUnavailable.
    """
    try:
        told = await client.call("CONFIG", "GET", *_ASKED)
    except ResponseError:  # managed servers keep CONFIG for themselves
        return await _from_info(client)
    words = [word.decode() for word in told]
    return losses(dict(zip(words[::2], words[1::2], strict=True)))


async def _from_info(client: Client) -> list[str]:
    try:
        persistence, memory = await client.call("INFO", "persistence"), await client.call("INFO", "memory")
    except ResponseError:
        return []
    settings = {"appendonly": "yes" if persistence.get("aof_enabled") else "no", "save": "not told"}
    settings |= {"maxmemory": str(memory.get("maxmemory", 0)), "maxmemory-policy": memory.get("maxmemory_policy", "")}
    return losses(settings)


def losses(settings: Mapping[str, str]) -> list[str]:
    """Judge a server's settings, by their names there."""
    found = []
    if settings.get("appendonly") == "no":
        since = "since its last snapshot" if settings.get("save") else "when it stops"
        found.append(f"the database has no append-only file (appendonly no) and loses what was written {since}")
    policy = settings.get("maxmemory-policy") or _KEEPS_ALL
    if policy != _KEEPS_ALL and settings.get("maxmemory", "0") != "0":
        found.append(f"the database drops records when its memory is full (maxmemory-policy {policy})")
    return found
