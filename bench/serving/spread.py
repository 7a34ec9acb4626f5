"""Requests spread over 300 adapters, four to a batch and 64 in memory, against the same requests over four.

They are drawn with repetition, so that about a third of those over 300 find their adapter in memory; the others ask for
one that has to be loaded first.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

from bench.serving.asking import RequestFailed, ask
from bench.serving.figures import Figures, share_line
from bench.serving.server import Server
from bench.serving.stage import Stage
from bench.training.report import Line

MANY = 300
FEW = 4
REQUESTS = 96
TOKENS = 16
AT_ONCE = 8
AIM = 0.6


async def measure(stage: Stage) -> list[Line]:
    sides = await stage.sides()
    many = stage.count(MANY, 12)
    names = await stage.publish(sides, many)
    found, failures = Figures("tokens/s"), {side.name: 0 for side in sides}
    asked = {f"{FEW} adapters": names[:FEW], f"{many} adapters": names}
    for number, side in stage.turns(sides):
        for kind, models in list(asked.items())[:: 1 if number % 2 else -1]:
            speed, failed = await _throughput(side, models, stage.count(REQUESTS, 16), random.Random(number))
            found.add(side.name, kind, speed)
            failures[side.name] += failed
    found.print()
    few, all_ = asked
    ours, stock = sides
    errors = failures[ours.name]
    return [
        share_line(
            f"requests over {many} adapters: throughput as a share of {FEW}", found.shares(ours.name, all_, few),
            found.shares(stock.name, all_, few), AIM,
        ),
        Line("the same: failed requests", str(errors), f"stock {failures[stock.name]}", errors, 0, at_least=False),
    ]  # fmt: skip


async def _throughput(server: Server, models: Sequence[str], requests: int, order: random.Random) -> tuple[float, int]:
    """Return tokens per second from the first request to the last answer, and how many requests failed."""
    turn = asyncio.Semaphore(AT_ONCE)
    async with server.client() as client:

        async def one(model: str) -> int:
            async with turn:
                try:
                    return len((await ask(client, model, TOKENS)).tokens)
                except RequestFailed as error:
                    server.check_alive()
                    print(f"  {server.name}: {error}", flush=True)
                    return 0

        begun = time.perf_counter()
        tokens = await asyncio.gather(*(one(model) for model in order.choices(models, k=requests)))
        seconds = time.perf_counter() - begun
    return sum(tokens) / seconds, tokens.count(0)
