"""Whether the API's memory stays flat over many streamed answers.

    python -m bench.api.memory [--requests 10000] [--at-once 32]

The inference server is the tests' own stand-in for its wire, since it is the API's memory that is looked at.
"""

from __future__ import annotations

import argparse
import asyncio

import httpx2
import psutil

from bench.api.scene import api_server, print_machine, print_table
from shared.store.presence import Presence
from shared.store.registry import Registry
from tests.api_server import BASE, ApiServer, make_base, make_replica, with_store
from tests.fakes.upstream import Upstream

TENTHS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=32)
    arguments = parser.parse_args()
    print_machine()
    with Upstream(pause_s=0.0) as upstream, api_server() as api:
        announce(api, upstream.url)
        process = psutil.Process(api.process.pid)
        rows = []
        for tenth in range(1, TENTHS + 1):
            asyncio.run(ask(api, arguments.requests // TENTHS, arguments.at_once))
            upstream.received.clear()
            rows.append([f"{tenth * arguments.requests // TENTHS:,}", process.memory_info().rss / (1 << 20)])
    print_table(["streamed answers", "resident MiB"], rows)


def announce(api: ApiServer, url: str) -> None:
    with_store(api.settings.redis_url, lambda client: Registry(client).put_base(make_base()))
    with_store(api.settings.redis_url, lambda client: Presence(client).beat_replica(make_replica(url), ttl_s=3600))


async def ask(api: ApiServer, count: int, at_once: int) -> None:
    """Stream `count` answers to their end, `at_once` at a time."""
    body = {"model": BASE, "messages": [{"role": "user", "content": "hello"}], "stream": True}
    turn = asyncio.Semaphore(at_once)

    async def one(client: httpx2.AsyncClient) -> None:
        async with turn, client.stream("POST", "/v1/chat/completions", json=body) as answer:
            answer.raise_for_status()
            text = "".join([piece async for piece in answer.aiter_text()])
            assert text.endswith("data: [DONE]\n\n")

    headers = {"authorization": f"Bearer {api.key}"}
    async with httpx2.AsyncClient(base_url=api.url, headers=headers, trust_env=False, timeout=120) as client:
        await asyncio.gather(*(one(client) for _ in range(count)))


if __name__ == "__main__":
    main()
