"""From publishing an adapter to the first token of its model, on an idle server and on one that decodes eight streams.

The adapter's files are in place. Ours is told by the registry, stock by its endpoint; the request follows at once.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx2

from bench.api.scene import percentile, print_table
from bench.serving.adapters import Adapter
from bench.serving.asking import ask, busy
from bench.serving.server import Server
from bench.serving.stage import Stage
from bench.training.report import Line

COUNT = 100
BLOCKS = 4
"""In how many turns the sides publish them."""
STREAMS = 8
AIMS_S = {"idle": 0.5, "eight streams": 2.0}
_SHELF = 12
"""As many different adapters are published again and again, under new names."""


async def measure(stage: Stage) -> list[Line]:
    sides = await stage.sides()
    used = await stage.publish(sides, 2)
    adapters = stage.shelf.take(_SHELF)
    found: dict[tuple[str, str], list[float]] = {}
    for load in AIMS_S:
        for block in range(stage.count(BLOCKS, 1)):
            for side in sides[:: 1 if block % 2 else -1]:
                numbers = range(stage.count(COUNT // BLOCKS, 2))
                async with _under(load, side, used):
                    seconds = [
                        await _first_token(side, f"ft:publish:{load.replace(' ', '-')}:{block}-{n}", adapters, n)
                        for n in numbers
                    ]
                found.setdefault((side.name, load), []).extend(seconds)
    print()
    print_table(
        ["side", "server", "count", "p50 s", "p99 s", "most s"],
        [
            [side, load, str(len(times)), percentile(times, 0.5), percentile(times, 0.99), max(times)]
            for (side, load), times in found.items()
        ],
    )
    ours, stock = (side.name for side in sides)
    return [_line(load, found[ours, load], found[stock, load]) for load in AIMS_S]


def _line(load: str, ours: Sequence[float], stock: Sequence[float]) -> Line:
    p99 = percentile(ours, 0.99)
    return Line(
        f"publish to first token, {load}: p99, seconds", f"{p99:.2f} s (p50 {percentile(ours, 0.5):.2f})",
        f"stock {percentile(stock, 0.99):.2f} s (p50 {percentile(stock, 0.5):.2f})", p99, AIMS_S[load], at_least=False,
    )  # fmt: skip


@asynccontextmanager
async def _under(load: str, server: Server, models: Sequence[str]) -> AsyncIterator[None]:
    if load == "idle":
        yield
    else:
        async with busy(server, models, STREAMS):
            yield


async def _first_token(server: Server, model: str, adapters: Sequence[Adapter], number: int) -> float:
    async with server.client() as client:
        await _connect(client)
        begun = time.perf_counter()
        await server.publish(model, adapters[number % len(adapters)])
        answer = await ask(client, model, 1)
        seconds = answer.times[0] - begun
    await server.retire(model)
    return seconds


async def _connect(client: httpx2.AsyncClient) -> None:
    """Have the connection open before the clock starts."""
    (await client.get("/health")).raise_for_status()
