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
from bench.serving.asking import ask
from bench.serving.gateway import gateway
from bench.serving.sides.ours import Ours
from bench.serving.stage import Stage
from bench.training.report import Line

FEW = 5
MANY = 5000
REQUESTS = 60
TOKENS = 8
AIM = 1.05
WARM = "ft:bench:registered-0"
_FILES = 4
_WARM_UP = 4


async def measure(stage: Stage) -> list[Line]:
    stage.clear()
    counts = [FEW, stage.count(MANY, 50)]
    async with _stack(stage, counts[0]) as few, _stack(stage, counts[1]) as many:
        times = await _ask_in_turns([few, many], stage.rounds * stage.count(REQUESTS, 5))
    print()
    print_table(
        ["registered adapters", "requests", "p50 ms", "p99 ms"],
        [
            [f"{count:,}", str(len(found)), f"{statistics.median(found):.1f}", f"{percentile(found, 0.99):.1f}"]
            for count, found in zip(counts, times, strict=True)
        ],
    )
    least, most = (statistics.median(found) for found in times)
    measured = (
        f"a warm adapter's request beside {counts[1]:,} registered (records that share {_FILES} adapters' files), of "
        f"that beside {counts[0]}"
    )
    return [Line(measured, f"{most:.1f} ms", f"{least:.1f} ms", most / least, AIM, at_least=False)]


@asynccontextmanager
async def _stack(stage: Stage, count: int) -> AsyncIterator[httpx2.AsyncClient]:
    """Run a stack in which `count` adapters were registered before its inference service started.

    They share a few adapters' files: they are records here, and few of them are ever loaded.
    """
    home = stage.folder / f"registered-{count}"
    home.mkdir()
    ours = Ours(home, stage.base)
    try:
        await ours.open()
        adapters = stage.shelf.take_to(home, _FILES)
        for number in range(count):
            await ours.publish(f"ft:bench:registered-{number}", adapters[number % _FILES])
        seconds = await ours.start()
        print(f"  {count:,} registered, up after {seconds:.1f} s", flush=True)
        async with gateway(ours) as client:
            yield client
    finally:
        await ours.close()


async def _ask_in_turns(clients: Sequence[httpx2.AsyncClient], requests: int) -> list[list[float]]:
    """Return for each stack the milliseconds of every request, the first few left out."""
    times: list[list[float]] = [[] for _ in clients]
    for number in range(-_WARM_UP, requests):
        order = range(len(clients)) if number % 2 else reversed(range(len(clients)))
        for place in order:
            begun = time.perf_counter()
            await ask(clients[place], WARM, TOKENS)
            if number >= 0:
                times[place].append((time.perf_counter() - begun) * 1000)
    return times
