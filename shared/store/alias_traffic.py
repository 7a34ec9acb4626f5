"""Counts of what the models of an alias did, in slots of ten seconds that vanish by themselves.

A count's name is `{revision} {metric} {model}`: the revision at which the model began, one of the metrics below, or a
bin of a histogram such as `first_12`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from shared import keys
from shared.store.client import Argument, Client

SLOT_S = 10
_KEEP_S = 3600 + 600


class Place(NamedTuple):
    """Where a count belongs: whose it is, and the Unix time of its slot in slots."""

    uid: str
    slot: int


class Count(NamedTuple):
    """What is counted."""

    since: int
    metric: str
    model: str


class TrafficStore:
    """Counts in Redis, added to by every API process."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def add(self, counted: Mapping[Place, Mapping[Count, int]]) -> None:
        """Add to what is there, in one round trip."""
        commands: list[tuple[Argument, ...]] = []
        for place, counts in counted.items():
            key = keys.alias_traffic(*place)
            commands += [("HINCRBY", key, " ".join(map(str, count)), number) for count, number in counts.items()]
            commands.append(("EXPIRE", key, _KEEP_S))
        if commands:
            await self._client.together(commands)

    async def read(self, uid: str, *, window_s: int, now: float) -> Counter[Count]:
        """Add up the slots that reach into the last `window_s` seconds, an hour at most, before `now` (Unix time)."""
        slots = range(slot_of(now - window_s), slot_of(now) + 1)
        total: Counter[Count] = Counter()
        for found in await self._client.together([("HGETALL", keys.alias_traffic(uid, slot)) for slot in slots]):
            for name, number in found.items():
                since, metric, model = name.decode().split(" ", 2)
                total[Count(int(since), metric, model)] += int(number)
        return total


def slot_of(time_s: float) -> int:
    return int(time_s // SLOT_S)
