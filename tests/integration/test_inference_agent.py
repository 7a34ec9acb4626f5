"""The agent against the real registry, with an engine that only remembers: queueing, single loads, late news."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.inference import tasks
from services.inference.adapters import agent as agent_module
from services.inference.adapters import failures
from services.inference.adapters.agent import AdapterAgent
from services.inference.adapters.loader import AdapterLoader
from services.inference.adapters.reports import Reports
from services.inference.adapters.turns import Busy, Turns
from services.inference.adapters.uses import Uses
from services.inference.engine.link import EngineLink
from shared.adapters import adapter_digest
from shared.blobs.local import LocalBlobs
from shared.errors import AdapterRejected, NotFound
from shared.paths import Paths
from shared.records import AdapterRecord, BaseRecord
from shared.store.adapter_uses import AdapterUses
from shared.store.client import Client
from shared.store.registry import Registry
from tests.integration.inference_stack import BASE_ID, make_adapter, make_base

REPLICA = "replica-test"


class RememberingEngine:
    """Answers the worker's calls and holds no weights."""

    def __init__(self) -> None:
        self.resident: list[int] = []
        self.loads: list[int] = []
        self.broken: set[int] = set()
        self.tried: list[int] = []

    async def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        await asyncio.sleep(0.01)
        if method == "selftune_load":
            _, int_id, _, evict = args
            if int_id in self.broken:
                self.tried.append(int_id)
                return [{"error": "it breaks", "retry": False, "load_ms": 1.0, "resident": self.resident}]
            self.loads.append(int_id)
            self.resident = [known for known in self.resident if known not in evict] + [int_id]
            return [{"error": "", "retry": False, "load_ms": 1.0, "resident": self.resident}]
        self.resident = [known for known in self.resident if known not in args[0]]
        return [{"resident": self.resident}]


class World:
    """One agent with room for two adapters, and a way to publish."""

    def __init__(self, home: Path, base: Path, adapter: Path, client: Client) -> None:
        registry = Registry(client)
        self.engine = RememberingEngine()
        self.registry = registry
        self.reports = Reports(registry, REPLICA)
        self._adapter = adapter
        record = BaseRecord(id=BASE_ID, path=str(base), fingerprint="tiny", context_length=512, created_at=0)
        self.loader = AdapterLoader(
            engine=EngineLink(self.engine), base=record, blobs=LocalBlobs(Paths(home)), capacity=2, max_rank=8
        )
        self.uses = AdapterUses(client)
        self.foreign: set[str] = set()
        self.agent = AdapterAgent(
            base_id=BASE_ID,
            registry=registry,
            reports=self.reports,
            loader=self.loader,
            uses=Uses(self.uses, BASE_ID),
            turns=Turns(3, turn_s=2.0, patience_s=5.0),
            is_owner=self._is_owner,
        )

    async def _is_owner(self, name: str) -> bool:
        return name not in self.foreign

    async def publish(self, name: str) -> AdapterRecord:
        return await self.registry.publish(
            AdapterRecord(
                name=name,
                base=BASE_ID,
                base_fingerprint="tiny",
                folder="adapter",
                rank=4,
                project="p",
                job_id="j",
                sha256=adapter_digest(self._adapter),
                created_at=int(time.time()),
            )
        )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home").resolve()
    make_adapter(home / "adapter", make_base(home / "base"), seed=1)
    return home


@asynccontextmanager
async def world(
    home: Path, redis_url: str, before: Callable[[World], Awaitable[None]] | None = None
) -> AsyncIterator[World]:
    client = Client(redis_url)
    made = World(home, home / "base", home / "adapter", client)
    if before is not None:
        await before(made)
    await made.agent.start()
    background = [asyncio.create_task(made.agent.follow()), asyncio.create_task(made.reports.run())]
    try:
        yield made
    finally:
        await tasks.end(background)
        await client.close()


def play(
    home: Path,
    redis_url: str,
    story: Callable[[World], Awaitable[None]],
    before: Callable[[World], Awaitable[None]] | None = None,
) -> None:
    """Let an agent live through `story`; `before` is what it finds when it starts."""

    async def run() -> None:
        async with asyncio.timeout(30), world(home, redis_url, before) as made:
            await story(made)

    asyncio.run(run())


async def state(made: World, name: str, wanted: str) -> None:
    while (found := (await made.registry.residency(name)).get(REPLICA)) is None or found.state != wanted:
        await asyncio.sleep(0.02)


def test_published_adapter_is_warm_without_a_request(home: Path, redis_url: str) -> None:
    async def story(made: World) -> None:
        record = await made.publish("ft:a")
        await state(made, "ft:a", "warm")
        assert made.engine.loads == [record.int_id]
        await made.publish("ft:a")  # listing it publishes it again
        await made.agent.acquire("ft:a")
        assert made.engine.loads == [record.int_id]

    play(home, redis_url, story)


def test_many_requests_cause_one_load(home: Path, redis_url: str) -> None:
    async def story(made: World) -> None:
        await made.publish("ft:a")
        leases = await asyncio.gather(*[made.agent.acquire("ft:a") for _ in range(20)])
        assert len(leases) == 20
        assert len(made.engine.loads) == 1

    play(home, redis_url, story)


def test_request_waits_for_a_place_and_is_sent_away_when_none_comes_free(
    home: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "QUEUE_S", 0.3)

    async def story(made: World) -> None:
        for name in ("ft:a", "ft:b", "ft:c"):
            await made.publish(name)
        first, _second = await made.agent.acquire("ft:a"), await made.agent.acquire("ft:b")
        with pytest.raises(Busy):
            await made.agent.acquire("ft:c")
        waiting = asyncio.create_task(made.agent.acquire("ft:c"))
        await asyncio.sleep(0.05)
        made.agent.release(first)
        assert (await waiting).name == "ft:c"
        await state(made, "ft:a", "staged")

    play(home, redis_url, story)


def test_retired_adapter_goes_when_its_last_lease_ends(home: Path, redis_url: str) -> None:
    async def story(made: World) -> None:
        record = await made.publish("ft:a")
        lease = await made.agent.acquire("ft:a")
        await made.registry.retire("ft:a")
        await state(made, "ft:a", "draining")
        assert made.engine.resident == [record.int_id]
        with pytest.raises(NotFound):
            await made.agent.acquire("ft:a")
        made.agent.release(lease)
        await state(made, "ft:a", "gone")
        assert made.engine.resident == []

    play(home, redis_url, story)


def test_adapters_of_other_bases_are_unknown(home: Path, redis_url: str) -> None:
    async def story(made: World) -> None:
        record = await made.publish("ft:a")
        await made.registry.publish(AdapterRecord(**{**_fields(record), "name": "ft:z", "base": "other"}))
        with pytest.raises(NotFound):
            await made.agent.acquire("ft:z")

    play(home, redis_url, story)


def test_a_replica_that_does_not_own_an_adapter_loads_it_at_its_first_request(home: Path, redis_url: str) -> None:
    async def story(made: World) -> None:
        made.foreign.add("ft:a")
        await made.publish("ft:a")
        await made.publish("ft:b")
        await state(made, "ft:b", "warm")
        assert made.agent.names() == ["ft:b"]
        await made.agent.acquire("ft:a")
        assert made.agent.names() == ["ft:a", "ft:b"]

    play(home, redis_url, story)


def test_what_is_used_most_is_in_memory_after_a_restart(home: Path, redis_url: str) -> None:
    async def before(made: World) -> None:
        for name in ("ft:a", "ft:b", "ft:c", "ft:d"):
            await made.publish(name)
        await made.uses.add(BASE_ID, {"ft:a": 5, "ft:c": 9, "ft:b": 1, "ft:gone": 99})

    async def story(made: World) -> None:
        await state(made, "ft:a", "warm")
        assert made.agent.names() == ["ft:a", "ft:c"]

    play(home, redis_url, story, before)


def test_pinned_adapters_stay_and_come_back_first(home: Path, redis_url: str) -> None:
    async def before(made: World) -> None:
        for name in ("ft:a", "ft:b", "ft:c"):
            pinned = await made.publish(name)
        await made.registry.pin(pinned, pinned=True)
        made.foreign.add("ft:c")

    async def story(made: World) -> None:
        await state(made, "ft:c", "warm")
        for name in ("ft:a", "ft:b", "ft:a"):
            made.agent.release(await made.agent.acquire(name))
            assert "ft:c" in made.agent.names()
        record = await made.registry.get("ft:c")
        assert record is not None
        await made.registry.pin(record, pinned=False)
        while made.loader.residents.pinned:
            await asyncio.sleep(0.02)
        for name in ("ft:a", "ft:b"):
            made.agent.release(await made.agent.acquire(name))
        assert made.agent.names() == ["ft:a", "ft:b"]

    play(home, redis_url, story, before)


def test_more_pins_than_a_quarter_of_the_places_do_not_take_them_all(home: Path, redis_url: str) -> None:
    async def before(made: World) -> None:
        for name in ("ft:a", "ft:b", "ft:c"):
            await made.registry.pin(await made.publish(name), pinned=True)

    async def story(made: World) -> None:
        for name in ("ft:b", "ft:c", "ft:a"):
            made.agent.release(await made.agent.acquire(name))
        assert len(made.loader.residents.pinned) == 1

    play(home, redis_url, story, before)


def test_an_adapter_that_fails_again_and_again_is_quarantined_until_it_is_asked_for(
    home: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "RETRY_S", 0.01)

    async def story(made: World) -> None:
        record = await made.publish("ft:a")
        await state(made, "ft:a", "warm")
        assert await made.loader.drop_idle(record.int_id)
        made.engine.broken.add(record.int_id)
        for _ in range(failures.QUARANTINE_AFTER + 3):
            with pytest.raises(AdapterRejected, match="it breaks"):
                await made.agent.acquire("ft:a")
            await asyncio.sleep(0.1)
        await state(made, "ft:a", "quarantined")
        assert len(made.engine.tried) == failures.QUARANTINE_AFTER
        made.engine.broken.clear()
        await made.registry.ask_to_warm(record)
        await state(made, "ft:a", "warm")
        assert (await made.agent.acquire("ft:a")).int_id == record.int_id

    play(home, redis_url, story)


def test_a_refused_request_gives_its_turn_back(home: Path, redis_url: str) -> None:
    async def story(made: World) -> None:
        record = await made.publish("ft:a")
        made.engine.broken.add(record.int_id)
        assert await made.loader.drop_idle(record.int_id)
        for _ in range(5):
            with pytest.raises((AdapterRejected, NotFound)):
                await made.agent.acquire("ft:a")
        assert not made.agent.turns._inside

    play(home, redis_url, story)


def test_thousands_of_adapters_are_known_at_once(home: Path, redis_url: str) -> None:
    async def before(made: World) -> None:
        record = await made.publish("ft:0")
        for number in range(1, 2000):
            await made.registry.publish(AdapterRecord(**{**_fields(record), "name": f"ft:{number}"}))

    async def story(made: World) -> None:
        await state(made, "ft:1999", "warm")
        assert made.agent.numbers()["adapters_registered"] == 2000
        assert len(made.agent.names()) <= 2

    play(home, redis_url, story, before)


def _fields(record: AdapterRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}
