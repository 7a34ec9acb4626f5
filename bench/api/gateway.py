"""What the gateway costs: answers of a running stack's vLLM, asked directly and through the API, in turns.

    python -m bench.api.gateway DATA_DIR URL [--rounds 5] [--streams 16] [--tokens 48]

DATA_DIR and URL are those of a `selftune up` that is otherwise idle. Throughput is of all streams together; time to the
first token is of one stream alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path

import httpx2

from bench.api.scene import median, print_machine, print_table
from shared.store.client import Client
from shared.store.presence import Presence
from shared.store.registry import Registry


@dataclass(frozen=True)
class Door:
    """One way to the model."""

    name: str
    url: str
    key: str


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("url")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    arguments = parser.parse_args()
    print_machine()
    doors, model = await find(arguments.data_dir, arguments.url)
    throughput: dict[str, list[float]] = {door.name: [] for door in doors}
    first: dict[str, list[float]] = {door.name: [] for door in doors}
    async with httpx2.AsyncClient(trust_env=False, timeout=600) as client:
        for number in range(arguments.rounds + 1):  # the first warms everything up
            for door in doors if number % 2 else doors[::-1]:
                begun = time.perf_counter()
                tokens = await asyncio.gather(
                    *(stream(client, door, model, arguments.tokens, n) for n in range(arguments.streams))
                )
                speed = sum(count for count, _ in tokens) / (time.perf_counter() - begun)
                alone = [(await stream(client, door, model, 2, n))[1] * 1000 for n in range(20)]
                if number:
                    throughput[door.name].append(speed)
                    first[door.name] += alone
    rows = [[d.name, median(throughput[d.name]), _runs(throughput[d.name]), median(first[d.name])] for d in doors]
    print_table(["asked", f"tokens/s, {arguments.streams} streams", "runs", "first token ms, p50"], rows)
    direct, gateway = (door.name for door in doors)
    lost = 1 - median(throughput[gateway]) / median(throughput[direct])
    print(f"the gateway costs {lost:.1%} of throughput and {median(first[gateway]) - median(first[direct]):.1f} ms")


async def find(data_dir: Path, url: str) -> tuple[list[Door], str]:
    """Return the two ways, vLLM's own first, and the base model's name."""
    client = Client(os.environ.get("SELFTUNE_REDIS_URL") or f"unix://{data_dir}/valkey/valkey.sock")
    replica = next(item for item in await Presence(client).replicas() if item.state == "ready")
    base = (await Registry(client).bases())[0].id
    await client.close()
    internal, admin = ((data_dir / name).read_text().strip() for name in ("internal.key", "admin.key"))
    return [Door("vLLM directly", replica.url, internal), Door("through the gateway", url, admin)], base


async def stream(client: httpx2.AsyncClient, door: Door, model: str, tokens: int, number: int) -> tuple[int, float]:
    """Stream one answer; returns its number of chunks with text and the seconds to the first of them."""
    body = {
        "model": model, "messages": [{"role": "user", "content": f"Count to a hundred, start with {number}."}],
        "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True,
    }  # fmt: skip
    begun, first, count = time.perf_counter(), 0.0, 0
    headers = {"authorization": f"Bearer {door.key}"}
    async with client.stream("POST", f"{door.url}/v1/chat/completions", json=body, headers=headers) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {") and '"content":"' in line and '"content":""' not in line:
                first = first or time.perf_counter() - begun
                count += 1
    return count, first


def _runs(values: list[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


if __name__ == "__main__":
    asyncio.run(main())
