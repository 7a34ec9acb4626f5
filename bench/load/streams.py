"""Many open streams: readers of a job's events, and chats whose readers hardly read."""

from __future__ import annotations

import asyncio
import socket
import time

import httpx2
import psutil

from bench.api.scene import api_server, percentile, print_table
from bench.load.jobs import prepare
from bench.load.serving import serve
from shared.schemas.events import Event
from shared.store.client import Client
from shared.store.jobs import JobStore, event
from tests.api_server import BASE, ApiServer
from tests.fakes.upstream import Upstream

READERS = 200
CHATS = 64
_PIECE = b'data: {"choices":[{"delta":{"content":"' + b"x" * 8000 + b'"}}]}\n\n'


def events(seconds: float) -> None:
    """Append ten events a second to a job that 200 readers follow; print how late the events arrive."""
    with api_server() as api:
        path, _ = prepare(api, jobs=1)
        late_ms, received, processor = asyncio.run(_followed(api, path, seconds))
        expected = READERS * int(seconds * 10)
        print_table(
            ["readers", "events each", "missed", "late p50 ms", "late p99 ms", "api's share of a core"],
            [[float(READERS), seconds * 10, float(expected - received), percentile(late_ms, 0.5),
              percentile(late_ms, 0.99), processor]],
        )  # fmt: skip


async def _followed(api: ApiServer, path: str, seconds: float) -> tuple[list[float], int, float]:
    """Return lateness of each event at each reader, their number, and the api's share of a core."""
    job_id, total = path.rpartition("/")[2], int(seconds * 10)
    client, late_ms, told = Client(api.settings.redis_url), list[float](), {}
    process = psutil.Process(api.process.pid)

    async def read(http: httpx2.AsyncClient) -> None:
        seen = 0
        async with http.stream("GET", f"{api.url}{path}/events?stream=true") as answer:
            async for line in answer.aiter_lines():
                if "bench " in line:
                    number = int(line.partition("bench ")[2].partition('"')[0])
                    late_ms.append((time.perf_counter() - told[number]) * 1000)
                    seen += 1
                if seen == total:
                    return

    limits = httpx2.Limits(max_connections=None)
    headers = {"authorization": f"Bearer {api.key}"}
    async with httpx2.AsyncClient(trust_env=False, timeout=60, limits=limits, headers=headers) as http:
        readers = [asyncio.create_task(read(http)) for _ in range(READERS)]
        await asyncio.sleep(3)
        before, begun = sum(process.cpu_times()[:2]), time.perf_counter()
        for number in range(total):
            told[number] = time.perf_counter()
            await JobStore(client).append_events(job_id, [_event(number)])
            await asyncio.sleep(0.1)
        async with asyncio.timeout(30):
            await asyncio.gather(*readers)
        share = (sum(process.cpu_times()[:2]) - before) / (time.perf_counter() - begun)
    await client.close()
    return late_ms, len(late_ms), share


def _event(number: int) -> Event:
    return event(f"bench {number}")


def slow(seconds: float) -> None:
    """Open 64 chats that answer 64 MB each, and read a kilobyte a second; print what the api's memory does."""
    upstream = Upstream(events=[_PIECE] * 8000, pause_s=0.0)
    with upstream, api_server() as api:
        serve(api, upstream)
        process = psutil.Process(api.process.pid)
        before = process.memory_info().rss
        chats = [_open_chat(api) for _ in range(CHATS)]
        most, read = before, 0
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(1)
            for chat in chats:
                read += len(chat.recv(1024))
            most = max(most, process.memory_info().rss)
        begun = time.perf_counter()
        httpx2.get(f"{api.url}/healthz", trust_env=False, timeout=10).raise_for_status()
        answered_ms = (time.perf_counter() - begun) * 1000
        for chat in chats:
            chat.close()
        time.sleep(2)
        left = process.memory_info().rss
        print_table(
            ["slow chats", "offered MB", "read MB", "memory before MB", "most MB", "after MB", "/healthz ms"],
            [[float(CHATS), CHATS * 8000 * len(_PIECE) / 1e6, read / 1e6, before / 1e6, most / 1e6, left / 1e6,
              answered_ms]],
        )  # fmt: skip


def _open_chat(api: ApiServer) -> socket.socket:
    body = b'{"model":"%s","stream":true,"messages":[{"role":"user","content":"hi"}]}' % BASE.encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {api.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    chat = socket.create_connection(("127.0.0.1", api.settings.port), timeout=30)
    chat.sendall(head.encode() + body)
    return chat
