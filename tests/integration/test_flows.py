"""Flows in a real database: kept, brought forward by one process at a time, resumed after a kill, stopped."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis
from msgspec.structs import replace

from services.api import long_work
from services.api.flow_tries import MAX_TRIES
from services.api.flows import FlowFailed, FlowRunner, _look_s, canceled
from services.api.leftovers import Leftovers
from shared import keys
from shared.blobs.opening import open_blobs
from shared.errors import LeaseLost, NotFound, RateLimited, StoreUnavailable, TransitionRefused
from shared.flow_records import FlowRecord
from shared.flow_states import FlowState
from shared.paths import Paths
from shared.settings import Settings
from shared.store import entries
from shared.store.client import Client
from shared.store.flows import FlowStore
from tests.api_server import with_store

T = TypeVar("T")
LEASE_S = 1.0


class Walk(FlowRecord, frozen=True, kw_only=True):
    """Goes so many steps; what each is to make has its name in the record before it is made."""

    steps: int = 2
    begun: tuple[str, ...] = ()
    done: tuple[str, ...] = ()


class Walker(FlowRunner[Walk]):
    one, several, one_id = "walk", "walks", "walk_id"

    def __init__(
        self, client: Client, folder: Path, made: str, *, dies_after_making: int = 0, lease_s: float = LEASE_S
    ) -> None:
        paths = Paths(folder)
        blobs = open_blobs(Settings(data_dir=str(folder)), paths)
        flows = FlowStore(client, "walk", Walk)
        leftovers = Leftovers(client, blobs, paths.flows_of("walk"))
        super().__init__(flows, flows.leases(ttl_s=lease_s), leftovers, asyncio.Event())
        self.client = client
        self.made = made
        self.dies_after_making = dies_after_making
        self.at_work: Counter[str] = Counter()
        self.cleaned: list[Walk] = []

    async def advance(self, record: Walk) -> Walk:
        if len(record.done) == record.steps:
            return replace(record, status=FlowState.COMPLETED)
        if len(record.begun) == len(record.done):
            return replace(record, begun=(*record.begun, f"{record.id} {len(record.begun)}"))
        name = record.begun[-1]
        await self.client.call("SADD", self.made, name)
        if len(record.begun) == self.dies_after_making:
            os._exit(1)
        return replace(record, done=(*record.done, name))

    async def clean_up(self, record: Walk) -> None:
        self.cleaned.append(record)


def walk(number: int, **fields: object) -> Walk:
    return Walk(id=f"walk_{number}", project="p", created_at=number, **fields)  # type: ignore[arg-type]


async def until(condition: Callable[[], Awaitable[T]], *, timeout_s: float = 20.0) -> T:
    async with asyncio.timeout(timeout_s):
        while not (found := await condition()):
            await asyncio.sleep(0.02)
    return found


async def ended(store: FlowStore[Walk], flow_id: str) -> Walk:
    async def look() -> Walk | None:
        return None if await store.is_active(flow_id) else await store.get(flow_id)

    found = await until(look)
    assert found is not None
    return found


def test_flows_are_kept_once_and_changed_by_one_at_a_time(redis_url: str) -> None:
    async def look(client: Client) -> None:
        store = FlowStore(client, "walk", Walk, project_flows=3)
        for number in (1, 2, 2, 3):
            assert await store.create(walk(number)) == walk(number)
        with pytest.raises(RateLimited) as refused:
            await store.create(walk(4))
        assert refused.value.code == "concurrent_walks_exceeded"
        for wrong in ("walk_9", "walk 1", "../walk_1"):
            with pytest.raises(NotFound):
                await store.get(wrong, project="p")
        with pytest.raises(NotFound):
            await store.get("walk_1", project="q")
        first, more = await store.list("p", after=None, limit=2)
        assert ([one.id for one in first], more) == (["walk_3", "walk_2"], True)
        assert (await store.list("p", after="walk_2", limit=2))[0] == [walk(1)]

        changes = [lambda current: replace(current, done=(*current.done, "x"))] * 8
        await asyncio.gather(*(store.update("walk_1", change) for change in changes))
        assert (await store.get("walk_1")).done == ("x",) * 8

        leases = store.leases(ttl_s=60)
        former = str(await leases.claim("walk_2"))
        assert await leases.claim("walk_2") is None
        await leases.release("walk_2", former)
        newer = str(await leases.claim("walk_2"))
        with pytest.raises(LeaseLost):
            await store.update("walk_2", lambda current: replace(current, steps=9), fence=former)
        assert (await store.update("walk_2", canceled, fence=newer)).status is FlowState.CANCELED
        assert await store.update("walk_2", canceled) == await store.get("walk_2"), "twice is the same as once"
        with pytest.raises(TransitionRefused):
            await store.update("walk_2", lambda current: replace(current, status=FlowState.COMPLETED))
        await store.create(walk(4))
        assert await store.active() == ["walk_1", "walk_2", "walk_3", "walk_4"]
        await store.close("walk_2")
        await store.remove(walk(1))
        assert await store.active() == ["walk_3", "walk_4"]
        assert [one.id for one in (await store.list("p", after="walk_1", limit=2, newest_first=False))[0]] == [
            "walk_2", "walk_3",
        ]  # fmt: skip
        assert await FlowStore(client, "run", Walk).active() == [], "kinds know nothing of each other"

    with_store(redis_url, look)


def test_a_flow_comes_back_out_of_a_backup(redis_url: str) -> None:
    async def look(client: Client) -> None:
        store = FlowStore(client, "walk", Walk)
        await store.create(walk(1, begun=("a",)))
        token = await store.leases(ttl_s=60).claim("walk_1")
        found = await entries.find(client)
        (kept,) = [one async for one in entries.read(client, "flow", found["flow"])]
        await client.call("FLUSHALL")
        assert token and await entries.put_back(client, entries.decode(entries.encode(kept)))
        assert await store.get("walk_1", project="p") == walk(1, begun=("a",))
        assert await store.active() == ["walk_1"]
        assert (await store.list("p", after=None, limit=1))[0] == [walk(1, begun=("a",))]
        assert await store.leases(ttl_s=60).claim("walk_1"), "no lease comes back"

    with_store(redis_url, look)


async def given_back(client: Client, flow_id: str) -> bool:
    return not await client.call("EXISTS", keys.flow_lease("walk", flow_id))


def die_on_the_way(url: str, folder: Path) -> None:
    """Work on flows until the process dies between making something and noting that it is made."""

    async def run() -> None:
        walker = Walker(Client(url), folder, "made", dies_after_making=2)
        walker.start()
        await asyncio.sleep(30)

    asyncio.run(run())


def test_what_a_killed_process_was_at_is_gone_on_with(redis_url: str, tmp_path: Path) -> None:
    async def prepare(client: Client) -> None:
        await FlowStore(client, "walk", Walk).create(walk(1, steps=3))

    async def go_on(client: Client) -> None:
        walker = Walker(client, tmp_path, "made")
        store = FlowStore(client, "walk", Walk)
        assert (await store.get("walk_1")).begun == ("walk_1 0", "walk_1 1")
        walker.start()
        done = await ended(store, "walk_1")
        await until(lambda: given_back(client, "walk_1"))
        await walker.close()
        assert (done.status, len(done.done)) == (FlowState.COMPLETED, 3)
        assert done.ended_at and done.started_at and walker.cleaned == [done]

    with_store(redis_url, prepare)
    process = multiprocessing.get_context("spawn").Process(target=die_on_the_way, args=(redis_url, tmp_path))
    process.start()
    process.join(timeout=30)
    assert process.exitcode == 1
    with_store(redis_url, go_on)
    with redis.Redis.from_url(redis_url) as client:
        assert client.smembers("made") == {f"walk_1 {n}".encode() for n in range(3)}, "nothing was made twice"


def test_no_flow_is_worked_on_by_two(redis_url: str, tmp_path: Path) -> None:
    at_work: Counter[str] = Counter()
    together: list[str] = []

    class Watched(Walker):
        async def advance(self, record: Walk) -> Walk:
            at_work[record.id] += 1
            together.extend([record.id] if at_work[record.id] > 1 else [])
            await asyncio.sleep(0.01)
            try:
                return await super().advance(record)
            finally:
                at_work[record.id] -= 1

    async def look(client: Client) -> None:
        store = FlowStore(client, "walk", Walk)
        for number in range(20):
            await store.create(walk(number))
        walkers = [Watched(client, tmp_path, "made", lease_s=60) for _ in range(3)]
        for walker in walkers:
            walker.start()
        for number in range(20):
            assert (await ended(store, f"walk_{number}")).status is FlowState.COMPLETED
        await asyncio.gather(*(walker.close() for walker in walkers))
        assert not together and sum(len(walker.cleaned) for walker in walkers) == 20

    with_store(redis_url, look)


def test_cancelling_reaches_into_a_step_and_failures_end_a_flow(redis_url: str, tmp_path: Path) -> None:
    class Stuck(Walker):
        async def advance(self, record: Walk) -> Walk:
            if record.id == "walk_1":
                self.begun.set()
                await asyncio.sleep(60)
            if record.id == "walk_2":
                raise FlowFailed("no_rows", "Nothing is left.")
            if record.id == "walk_3":
                raise RuntimeError
            raise RateLimited("later")

        begun = asyncio.Event()

    async def look(client: Client) -> None:
        store = FlowStore(client, "walk", Walk)
        for number in (1, 2, 3, 4):
            await store.create(walk(number))
        await store.create(walk(5, tries=MAX_TRIES))
        walker = Stuck(client, tmp_path, "made")
        walker.start()
        await walker.begun.wait()
        await store.update("walk_1", canceled)
        found = [await ended(store, f"walk_{number}") for number in (1, 2, 3, 5)]
        assert [one.status for one in found] == [FlowState.CANCELED] + [FlowState.FAILED] * 3
        assert [one.error and one.error.code for one in found] == [None, "no_rows", "server_error", "server_error"]
        waiting = await store.get("walk_4")
        assert waiting.status is FlowState.IN_PROGRESS, "one that has to wait waits"
        assert waiting.tries == 0, "a process that dies meanwhile did not die of it"
        await walker.close()
        assert (await store.get("walk_4")).tries == 0 and await store.leases(ttl_s=9).claim("walk_4")
        assert {one.id for one in walker.cleaned} == {"walk_1", "walk_2", "walk_3", "walk_5"}

    with_store(redis_url, look)


class Shaky(Client):
    """A client whose database is away at times."""

    is_away = False

    async def call(self, *command: Any) -> Any:
        if self.is_away:
            raise StoreUnavailable("away")
        return await super().call(*command)


def test_outages_are_nobodys_fault(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three flows are in the middle of a step at each of six outages, one more than a flow's tries."""
    monkeypatch.setattr(long_work, "_POLL_S", 0.02)
    weather = Shaky(redis_url)
    outages = 0

    class Caught(Walker):
        async def advance(self, record: Walk) -> Walk:
            caught.add(record.id)
            if outages < 6:
                await until(everybody_is_caught)
                weather.is_away = True
            return await super().advance(record)

    caught: set[str] = set()

    async def everybody_is_caught() -> bool:
        return len(caught) == 3

    async def look(client: Client) -> None:
        nonlocal outages
        store = FlowStore(client, "walk", Walk)
        for number in (1, 2, 3):
            await store.create(walk(number, steps=1))
        walker = Caught(weather, tmp_path, "made", lease_s=0.5)
        walker.start()

        async def all_are_put_down() -> bool:
            return weather.is_away and not walker._running

        for _ in range(6):
            await until(all_are_put_down)
            outages += 1
            caught.clear()
            weather.is_away = False
        found = [await ended(store, f"walk_{number}") for number in (1, 2, 3)]
        assert [one.status for one in found] == [FlowState.COMPLETED] * 3, found
        await walker.close()
        await weather.close()

    with_store(redis_url, look)


def test_what_processes_may_have_died_of_is_tried_one_by_one(redis_url: str, tmp_path: Path) -> None:
    at_once: list[int] = []
    at_work: set[str] = set()
    seen: set[str] = set()

    class Careful(Walker):
        async def advance(self, record: Walk) -> Walk:
            if record.id not in seen:
                seen.add(record.id)
                at_work.add(record.id)
                at_once.append(len(at_work))
                await asyncio.sleep(0.02)
                at_work.discard(record.id)
            return record

    async def look(client: Client) -> None:
        store = FlowStore(client, "walk", Walk)
        for number in (1, 2, 3):
            await store.create(walk(number, tries=2))
        walker = Careful(client, tmp_path, "made")
        walker.start()

        async def all_wait() -> bool:
            return all(one.tries == 0 for one in await store.read(["walk_1", "walk_2", "walk_3"]))

        await until(all_wait)
        assert len(walker._running) == 3, "one that has survived its step keeps nobody waiting"
        await walker.close()
        assert at_once == [1, 1, 1]

    with_store(redis_url, look)


def test_a_process_that_has_lost_a_flow_cleans_up_what_it_made_too_late(redis_url: str, tmp_path: Path) -> None:
    class Slow(Walker):
        async def advance(self, record: Walk) -> Walk:
            begun.set()
            await asyncio.sleep(60)
            return record

    begun = asyncio.Event()

    async def look(client: Client) -> None:
        store = FlowStore(client, "walk", Walk)
        await store.create(walk(1))
        walker = Slow(client, tmp_path, "made")
        walker.start()
        await begun.wait()
        await client.call("DEL", keys.flow_lease("walk", "walk_1"))
        assert await store.leases(ttl_s=60).claim("walk_1")
        stopped = await store.update("walk_1", canceled)
        await store.close("walk_1")

        async def is_cleaned() -> bool:
            return bool(walker.cleaned)

        await until(is_cleaned)
        assert walker.cleaned == [stopped]
        await walker.close()

    with_store(redis_url, look)


def test_what_others_work_on_is_not_read(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(client: Client) -> None:
        store = FlowStore(client, "walk", Walk)
        walker = Walker(client, tmp_path, "made")
        read: list[str] = []

        async def reading(ids: Sequence[str]) -> Sequence[Walk]:
            read.extend(ids)
            return await store.read(ids)

        monkeypatch.setattr(walker._flows, "read", reading)
        for number in (1, 2, 3):
            await store.create(walk(number))
        for number in (1, 2):
            assert await store.leases(ttl_s=60).claim(f"walk_{number}")
        walker.start()
        await ended(store, "walk_3")
        await walker.close()
        assert set(read) == {"walk_3"}

    with_store(redis_url, look)


def test_a_flow_that_waits_for_days_is_still_looked_at() -> None:
    waits = [_look_s(idle) for idle in (1, 2, 10, 100, 1_000_000)]
    assert waits == sorted(waits) and 0 < waits[0] < 1 and waits[-1] <= 5
