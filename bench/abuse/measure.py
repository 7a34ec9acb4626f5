"""Each kind of abuse against one API process, and what has to hold afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psutil

from bench.abuse.clients import Findings, drip, hold_unread, open_connection, send_all, watch_health
from bench.abuse.malformed import malformed
from services.api.connections import HEAD_S, PACE_S, STALL_S
from tests.api_server import BASE, ApiServer

HEALTH_S = 2.0
"""In which /healthz has to answer, whatever else goes on."""
GROWTH_BYTES = 96 << 20
"""By which a process may have grown after any amount of abuse: caches and the allocator's reserves."""
FILES_LEFT = 8
"""Open files that it may have more than before."""
_SETTLE_S, _STILL_S = 10.0, 3.0
"""How long its connections may take to end, and how long nothing may have changed until they are waited for no more."""


@dataclass(frozen=True)
class Measured:
    """What a kind of abuse left behind."""

    name: str
    seconds: float
    statuses: str
    slowest_health_s: float
    grown_bytes: int
    files_left: int
    """Open files more than before."""
    faults: list[tuple[str, bytes, bytes]]

    def check(self) -> None:
        """Raise AssertionError that says what went wrong."""
        assert not self.faults, f"{self.name}: {len(self.faults)} faults, such as {self.faults[:3]}"
        assert self.slowest_health_s < HEALTH_S, f"{self.name}: /healthz took {self.slowest_health_s:.1f} s"
        assert self.grown_bytes < GROWTH_BYTES, f"{self.name}: grown by {self.grown_bytes >> 20} MiB"
        assert self.files_left <= FILES_LEFT, f"{self.name}: {self.files_left} files are still open"


def measure(name: str, api: ApiServer, abuse: Callable[[Findings], Coroutine[Any, Any, None]]) -> Measured:
    """Run one kind of abuse beside /healthz, wait until its connections are gone, and look at the process."""
    process = psutil.Process(api.process.pid)
    files, rss = process.num_fds(), process.memory_info().rss
    found, started = Findings(), time.monotonic()

    async def run() -> None:
        async with _watched(api, found):
            await abuse(found)

    asyncio.run(run())
    seconds = time.monotonic() - started
    _settle(process, files)
    return Measured(
        name=name,
        seconds=seconds,
        statuses=", ".join(f"{status or 'none'}: {count:,}" for status, count in sorted(found.statuses.items())),
        slowest_health_s=found.slowest_health_s,
        grown_bytes=process.memory_info().rss - rss,
        files_left=process.num_fds() - files,
        faults=found.faults,
    )


def _settle(process: psutil.Process, files: int) -> None:
    """Wait until it has hardly more open files than before, or no longer closes any."""
    now = process.num_fds()
    changed = begun = time.monotonic()
    while now > files + FILES_LEFT and time.monotonic() < min(begun + _SETTLE_S, changed + _STILL_S):
        time.sleep(0.1)
        before, now = now, process.num_fds()
        if now != before:
            changed = time.monotonic()


@asynccontextmanager
async def _watched(api: ApiServer, found: Findings) -> AsyncIterator[None]:
    watching = asyncio.create_task(watch_health(api.settings.port, found))
    try:
        yield
    finally:
        if watching.done():
            watching.result()
        watching.cancel()


def malformed_requests(api: ApiServer, *, seed: int, count: int) -> Measured:
    port, key = api.settings.port, api.key
    return measure(
        f"{count:,} malformed requests", api, lambda found: send_all(port, malformed(seed, count, key), found)
    )


def slow_heads(api: ApiServer, *, count: int) -> Measured:
    """Heads of which a line comes every second."""
    return _dripped(api, "slow heads", count, b"GET /v1/models HTTP/1.1\r\nhost: x\r\n", b"x: y\r\n", HEAD_S)


def slow_bodies(api: ApiServer, *, count: int) -> Measured:
    """Bodies of which a byte comes every second, on a route that reads them."""
    head = f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {api.key}\r\ncontent-length: 100000\r\n"
    return _dripped(
        api, "slow bodies", count, f"{head}content-type: multipart/form-data; boundary=b\r\n\r\n".encode(), b"-", PACE_S
    )


def _dripped(api: ApiServer, name: str, count: int, start: bytes, endless: bytes, allowed_s: float) -> Measured:
    async def abuse(found: Findings) -> None:
        times = await asyncio.gather(*(drip(api.settings.port, start, endless) for _ in range(count)))
        found.faults += [("still open", b"", str(one).encode()) for one in times if one > allowed_s + HEALTH_S]

    return measure(f"{count:,} {name}", api, abuse)


def unread_streams(api: ApiServer, *, count: int) -> Measured:
    """Streams of a model that writes as fast as it can, to clients that read nothing."""
    body = b'{"model":"%s","messages":[{"role":"user","content":"x"}],"stream":true}' % BASE.encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {api.key}\r\n"
    request = f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body

    async def abuse(_found: Findings) -> None:
        writers = [await hold_unread(api.settings.port, request) for _ in range(count)]
        await asyncio.sleep(STALL_S + HEALTH_S)
        for writer in writers:
            writer.transport.abort()

    return measure(f"{count:,} streams that nobody reads", api, abuse)


def flood(api: ApiServer, *, count: int) -> Measured:
    """Connections that say nothing, until the server ends them."""

    async def one(found: Findings) -> None:
        reader, writer = await open_connection(api.settings.port)
        try:
            async with asyncio.timeout(HEAD_S + HEALTH_S):
                answer = await reader.read()
            found.statuses[int(answer[9:12] or 0)] += 1
        except ConnectionError:
            found.statuses[0] += 1
        except TimeoutError:
            found.faults.append(("still open", b"", b""))
        finally:
            writer.transport.abort()

    async def abuse(found: Findings) -> None:
        await asyncio.gather(*(one(found) for _ in range(count)))

    return measure(f"{count:,} silent connections", api, abuse)
