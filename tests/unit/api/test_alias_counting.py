"""Counting and shadows when something fails: nothing is lost, and nobody else is kept waiting."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

import httpx2
import pytest
from msgspec.structs import replace

from services.api.aliases.counting import Counting
from services.api.aliases.guard import Guard
from services.api.aliases.shadowing import Shadowing
from services.api.aliases.trip import Outcome
from services.api.gateway.model_names import Meaning
from services.api.gateway.outgoing import Asking, Opener
from shared.alias_records import AliasRecord
from shared.errors import NoReplica, StoreUnavailable
from shared.schemas.aliases import Shadow, TrafficLimits, Watch
from shared.store.alias_traffic import Count, Place, TrafficStore
from shared.store.aliases import AliasStore
from shared.store.audit import AuditStore
from shared.store.client import Client
from shared.store.registry import Registry
from shared.store.shadow_pairs import PairStore
from tests.api_server import make_base

CLIENT = Client("redis://unused")
WATCH = Watch(limits=TrafficLimits(max_error_rate=0.1))
ALIAS = AliasRecord(uid="alias_1", name="bot", project="p", target="v1", watch=WATCH, created_at=1, updated_at=1)
ANSWERED = Outcome(ending="answered", total_ms=1.0, kept=b"{}")


class Store(TrafficStore):
    """Adds up in memory; away for the first `absences` times."""

    def __init__(self, absences: int = 0) -> None:
        self.absences = absences
        self.total: Counter[Count] = Counter()

    async def add(self, counted: Mapping[Place, Mapping[Count, int]]) -> None:
        if self.absences:
            self.absences -= 1
            raise StoreUnavailable("away")
        for counts in counted.values():
            self.total.update(counts)


class Looking(Guard):
    """Notes which aliases are looked at; each of `faults` is raised once for its alias."""

    def __init__(self, faults: dict[str, Exception]) -> None:
        self.faults = faults
        self.seen: list[str] = []

    async def check(self, name: str, *, project: str) -> None:
        if name in self.faults:
            raise self.faults.pop(name)
        self.seen.append(name)


def test_counts_wait_for_a_database_that_is_away() -> None:
    store, guard = Store(absences=2), Looking({})
    counting = Counting(store, guard)

    async def run() -> None:
        for _ in range(3):
            counting.count(ALIAS, 1, "v1", ANSWERED, timed=False)
            await counting._flush()

    asyncio.run(run())
    assert store.total[Count(1, "answered", "v1")] == 3 and guard.seen == ["bot"]


def test_an_alias_that_cannot_be_checked_is_checked_again_and_stops_no_other() -> None:
    guard = Looking({"a": RuntimeError("odd"), "b": StoreUnavailable("away")})
    counting = Counting(Store(), guard)

    async def run() -> None:
        for name in ("a", "b", "c"):
            counting.count(replace(ALIAS, name=name), 1, "v1", ANSWERED, timed=False)
        await counting._flush()
        assert guard.seen == ["c"]
        await counting._flush()

    asyncio.run(run())
    assert sorted(guard.seen) == ["a", "b", "c"]


async def _nobody(meaning: Meaning, asking: Asking) -> httpx2.Response:
    raise NoReplica("nobody has room")


async def _broken(meaning: Meaning, asking: Asking) -> httpx2.Response:
    raise RuntimeError("a fault of ours")


@pytest.mark.parametrize(("send", "skipped"), [(_nobody, 2), (_broken, 0)])
def test_a_shadow_that_comes_to_nothing_gives_its_place_back(send: Opener, skipped: int) -> None:
    alias = replace(ALIAS, shadow=Shadow(model="v2", percent=100, max_in_flight=1))
    asking = Asking(endpoint="/v1/completions", body=b"{}", model="bot", request_id="r", priority=0, sticky="")
    store = Store()
    counting = Counting(store, Guard(AliasStore(CLIENT), store, Registry(CLIENT), AuditStore(CLIENT)))
    shadows = Shadowing(AliasStore(CLIENT), PairStore(CLIENT), counting)

    async def run() -> None:
        for _ in range(2):
            shadows.start(alias, Meaning("v2", make_base("v2")), asking, "v1", ANSWERED, send)
            await shadows._background.close(patience_s=60)
            assert not shadows._running
        await counting._flush()

    asyncio.run(run())
    assert store.total[Count(1, "skipped", "v2")] == skipped and not store.total[Count(1, "shadowed", "v2")]
