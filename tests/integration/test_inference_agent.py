"""The agent against the real registry, with an engine that only remembers: queueing, single loads, late news."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.inference import agent as agent_module
from services.inference import tasks
from services.inference.agent import AdapterAgent
from services.inference.engine_link import EngineLink
from services.inference.loader import AdapterLoader
from services.inference.reports import Reports
from services.inference.turns import Busy, Turns
from services.inference.uses import Uses
from shared.adapters import adapter_digest
from shared.errors import NotFound
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

    async def collective_rpc(self, method: str, timeout: float | None = None, args: tuple[Any, ...] = ()) -> list[Any]:
        await asyncio.sleep(0.01)
        if method == "selftune_load":
            _, int_id, _, evict = args
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
        loader = AdapterLoader(engine=EngineLink(self.engine), base=record, home=home, capacity=2, max_rank=8)
        self.foreign: set[str] = set()
        self.agent = AdapterAgent(
            base_id=BASE_ID,
            registry=registry,
            reports=self.reports,
            loader=loader,
            uses=Uses(AdapterUses(client), BASE_ID),
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
async def world(home: Path, redis_url: str) -> AsyncIterator[World]:
    client = Client(redis_url)
    made = World(home, home / "base", home / "adapter", client)
    await made.agent.start()
    background = [asyncio.create_task(made.agent.follow()), asyncio.create_task(made.reports.run())]
    try:
        yield made
    finally:
        await tasks.end(background)
        await client.close()


def play(home: Path, redis_url: str, story: Callable[[World], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(30), world(home, redis_url) as made:
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


def _fields(record: AdapterRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}
