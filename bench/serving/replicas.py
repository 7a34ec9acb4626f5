"""Two replicas behind the gateway: how requests divide, and what the loss of one costs.

Throughput of two is not measured: they share the cores that one of them fills, and get half of them each here. The
answers are not streamed, so that a request whose replica dies can be answered by the other.
"""

from __future__ import annotations

import asyncio
import os
import re
import time

import httpx2

from bench.api.scene import percentile, print_table
from bench.serving.asking import random_prompt
from bench.serving.gateway import gateway
from bench.serving.server import Server
from bench.serving.sides.ours import Ours
from bench.serving.stage import Stage
from bench.training.report import Line

REQUESTS = 32
AT_ONCE = 8
TOKENS = 16
MODEL = "ft:bench:replicas"
_ANSWERED = re.compile(r"^vllm:request_success_total\{.*\} (\S+)$", re.MULTILINE)


async def measure(stage: Stage) -> list[Line]:
    stage.clear()
    home = stage.folder / "replicas"
    home.mkdir()
    threads = max(1, (os.cpu_count() or 1) // 2)
    first = Ours(home, stage.base, threads=threads)
    second = Ours(home, stage.base, name="second replica", own_database=False, threads=threads)
    try:
        await first.open()
        (adapter,) = stage.shelf.take_to(home, 1)
        await first.publish(MODEL, adapter)
        for replica in (first, second):
            await replica.start()
        async with gateway(first) as client:
            return await _measure(client, first, second, stage.count(REQUESTS, 16))
    finally:
        for replica in (second, first):
            await replica.close()


async def _measure(client: httpx2.AsyncClient, first: Server, second: Server, requests: int) -> list[Line]:
    before = [await _answered(replica) for replica in (first, second)]
    whole = await _ask_many(client, requests)
    shares = [await _answered(replica) - count for replica, count in zip((first, second), before, strict=True)]
    lost = await _ask_many(client, requests, lose=second)
    print()
    columns = ["replicas", "requests", "failed", "p50 s", "slowest s"]
    rows = [("two", whole), ("two, of which one is killed on the way", lost)]
    print_table(columns, [[name, str(requests), str(found.count(None)), *_seconds(found)] for name, found in rows])
    divided = f"{shares[0]:.0f} and {shares[1]:.0f}"
    busier = max(shares) / sum(shares)
    failed = lost.count(None)
    return [
        Line(f"requests at two replicas, {AT_ONCE} at once: the busier one's share", divided, "", busier, 0.75, False),
        Line("failed requests when a replica is killed", f"{failed} of {requests}", "", failed, 0, at_least=False),
    ]


async def _ask_many(client: httpx2.AsyncClient, requests: int, lose: Server | None = None) -> list[float | None]:
    """Return the seconds of every request, None for one that failed; `lose` is killed when a third is answered."""
    turn = asyncio.Semaphore(AT_ONCE)
    times: list[float | None] = []

    async def one() -> None:
        async with turn:
            times.append(await _ask(client))
            if lose is not None and len(times) == requests // 3:
                lose.kill()

    await asyncio.gather(*(one() for _ in range(requests)))
    return times


async def _ask(client: httpx2.AsyncClient) -> float | None:
    body = {
        "model": MODEL, "prompt": random_prompt(), "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True,
    }  # fmt: skip
    begun = time.perf_counter()
    try:
        answer = await client.post("/v1/completions", json=body)
    except httpx2.TransportError as error:
        print(f"  {type(error).__name__}: {error}", flush=True)
        return None
    if answer.status_code != 200:
        print(f"  status {answer.status_code}: {answer.text[:300]}", flush=True)
        return None
    return time.perf_counter() - begun


async def _answered(server: Server) -> float:
    """Return how many requests vLLM has answered to their end."""
    async with server.client() as client:
        return sum(float(value) for value in _ANSWERED.findall((await client.get("/metrics/")).text))


def _seconds(found: list[float | None]) -> list[float]:
    times = [seconds for seconds in found if seconds is not None]
    return [percentile(times, 0.5), max(times)]
