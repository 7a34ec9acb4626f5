"""What thousands of registered adapters cost a request for one that is in memory, through the gateway.

Two whole stacks, each with a database, an API and an inference service of its own, are asked in turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx2

from bench.api.scene import percentile, print_table
from bench.serving.adapters import Adapter, Shelf
from bench.serving.asking import ask
from bench.serving.sides.ours import Ours
from bench.serving.stage import Stage
from bench.training.report import Line
from shared.store.api_keys import KeyStore
from shared.store.client import Client
from shared.store.projects import ProjectStore
from tests.api_server import ApiServer

FEW = 5
MANY = 5000
REQUESTS = 60
TOKENS = 8
AIM = 1.05
WARM = "ft:bench:registered-0"


async def measure(stage: Stage) -> list[Line]:
    counts = [FEW, stage.count(MANY, 50)]
    async with _stack(stage, counts[0]) as few, _stack(stage, counts[1]) as many:
        times = await _ask_in_turns([few, many], stage.rounds * stage.count(REQUESTS, 5))
    print()
    print_table(
        ["registered adapters", "requests", "p50 ms", "p99 ms"],
        [
            [str(count), str(len(found)), statistics.median(found), percentile(found, 0.99)]
            for count, found in zip(counts, times, strict=True)
        ],
    )
    least, most = (statistics.median(found) for found in times)
    measured = f"a warm adapter's request beside {counts[1]:,} registered, of that beside {counts[0]}"
    return [Line(measured, f"{most:.1f} ms", f"{least:.1f} ms", most / least, AIM, at_least=False)]


@asynccontextmanager
async def _stack(stage: Stage, count: int) -> AsyncIterator[ApiServer]:
    """Run a stack in which `count` adapters are registered before the inference service starts."""
    home = stage.folder / f"registered-{count}"
    home.mkdir()
    ours, api = Ours(home, stage.base), None
    try:
        await ours.open()
        await _register(ours, Shelf(stage.base, ours.base_id, home).take(FEW - 1), count)
        settings = ours.settings
        api = ApiServer(home, settings.redis_url, internal_key=settings.internal_key)
        await _know_key(settings.redis_url, api.key)
        seconds = await ours.start()
        print(f"  {count} registered, up after {seconds:.1f} s", flush=True)
        yield api
    finally:
        if api is not None:
            api.stop()
        await ours.close()


async def _register(ours: Ours, adapters: Sequence[Adapter], count: int) -> None:
    """Publish `count` models that share a few adapters' files: they are records here, and few are ever loaded."""
    for number in range(count):
        await ours.publish(f"ft:bench:registered-{number}", adapters[number % len(adapters)])


async def _know_key(redis_url: str, key: str) -> None:
    client = Client(redis_url)
    await ProjectStore(client).ensure_default()
    await KeyStore(client).ensure(key, name="bench", project="proj_default")
    await client.close()


async def _ask_in_turns(apis: Sequence[ApiServer], requests: int) -> list[list[float]]:
    """Return for each API the milliseconds of every request, the first few left out."""
    times: list[list[float]] = [[] for _ in apis]
    clients = [_client(api) for api in apis]
    for number in range(-4, requests):
        for place in (range(len(apis)), reversed(range(len(apis))))[number % 2]:
            begun = time.perf_counter()
            await ask(clients[place], WARM, TOKENS)
            if number >= 0:
                times[place].append((time.perf_counter() - begun) * 1000)
    for client in clients:
        await client.aclose()
    return times


def _client(api: ApiServer) -> httpx2.AsyncClient:
    headers = {"authorization": f"Bearer {api.key}"}
    return httpx2.AsyncClient(base_url=api.url, headers=headers, trust_env=False, timeout=600)
