"""Everything at once for a long time: memory and file handles must stay where they are after the first minutes."""

from __future__ import annotations

import asyncio
import itertools
import time

import httpx2
import psutil

from bench.api.scene import api_server, print_table
from bench.load.client import at_rate, request
from bench.load.jobs import prepare
from bench.load.serving import serve
from tests.api_server import BASE, ApiServer
from tests.fakes.upstream import Upstream


def soak(minutes: float) -> None:
    """Print the api's memory, file handles, threads and errors for each minute."""
    with Upstream() as upstream, api_server() as api:
        serve(api, upstream)
        path, body = prepare(api, jobs=20)
        process, rows = psutil.Process(api.process.pid), []
        for minute in range(round(minutes)):
            errors, answers = asyncio.run(_minute(api, path, body))
            memory = process.memory_info().rss / 1e6
            rows.append([float(minute + 1), memory, float(process.num_fds()), float(process.num_threads()),
                         float(answers), float(errors)])  # fmt: skip
            print(f"minute {minute + 1}: {memory:.0f} MB, {process.num_fds()} handles, {errors} errors", flush=True)
        print_table(["minute", "memory MB", "handles", "threads", "answers", "errors"], rows)


async def _minute(api: ApiServer, path: str, body: bytes) -> tuple[int, int]:
    port, key = api.settings.port, api.key
    reads = [request("GET", place, key=key) for place in (path, f"{path}/events", "/v1/files", "/v1/models")]
    chat = b'{"model":"%s","messages":[{"role":"user","content":"hi"}]}' % BASE.encode()
    writes = [
        request("POST", "/v1/fine_tuning/jobs", key=key, body=body),
        request("POST", "/v1/fine_tuning/jobs", key=key, body=b"{}"),  # refused
    ]
    chats = request("POST", "/v1/chat/completions", key=key, body=chat)
    loads = await asyncio.gather(
        at_rate(port, lambda number: reads[number % 4], per_s=100, seconds=58, connections=8),
        at_rate(port, lambda number: writes[number % 2], per_s=4, seconds=58, connections=2),
        at_rate(port, lambda _: chats, per_s=10, seconds=58, connections=8),
        _follow_and_leave(api, path),
    )
    unexpected = [error for load in loads[:3] for error in load.errors if error != "400"]
    return len(unexpected), sum(len(load.latencies_ms) for load in loads[:3])


async def _follow_and_leave(api: ApiServer, path: str) -> None:
    """Open streams of events and close them in the middle, and upload files, for a minute."""
    headers, begun = {"authorization": f"Bearer {api.key}"}, time.monotonic()
    async with httpx2.AsyncClient(base_url=api.url, headers=headers, trust_env=False, timeout=30) as http:
        for number in itertools.count():
            if time.monotonic() - begun > 58:
                return
            async with http.stream("GET", f"{path}/events?stream=true") as answer:
                await anext(answer.aiter_bytes(), b"")
            made = await http.post(
                "/v1/files", data={"purpose": "user_data"}, files={"file": (f"{number}.txt", b"x" * 100_000)}
            )
            await http.delete(f"/v1/files/{made.json()['id']}")
            await asyncio.sleep(0.2)
