"""Clients that mean no good, and one beside them that asks /healthz all the time."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_ANSWER_S = 30.0
_PATIENCE_S = 0.5
_SOURCES = itertools.cycle([f"127.0.{net}.{host}" for net in range(1, 9) for host in range(1, 255)])
"""Closed connections keep their port for a minute; each address has ports of its own."""


@dataclass
class Findings:
    """What came back. `faults` are the requests that were answered with 5xx or not within 30 seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[tuple[str, bytes, bytes]] = field(default_factory=list)
    """What, the request's beginning, the answer's beginning."""
    slowest_health_s: float = 0.0


async def open_connection(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect from the next of many addresses of this machine."""
    return await asyncio.open_connection("127.0.0.1", port, local_addr=(next(_SOURCES), 0))


async def send_all(port: int, requests: Iterable[bytes], found: Findings, *, at_once: int = 64) -> None:
    """Send each request on its own connection, and read what comes until the other side closes."""
    left = iter(requests)

    async def work() -> None:
        for request in left:
            await _send(port, request, found)

    await asyncio.gather(*(work() for _ in range(at_once)))


async def _send(port: int, request: bytes, found: Findings) -> None:
    reader, writer = await open_connection(port)
    answer = b""
    try:
        async with asyncio.timeout(_ANSWER_S):
            with suppress(ConnectionError):
                writer.write(request)
                first = asyncio.ensure_future(reader.read(1 << 20))
                await asyncio.wait({first}, timeout=_PATIENCE_S)
                if not first.done():  # it waits for the rest of a request that has none
                    writer.write_eof()
                answer = await first
                while piece := await reader.read(1 << 20):
                    answer += piece
    except TimeoutError:
        found.faults.append(("no end", request[:300], answer[:300]))
    finally:
        writer.transport.abort()
    statuses = [int(status) for status in _STATUS.findall(answer)]
    found.statuses.update(statuses or [0])
    if any(status >= 500 for status in statuses):
        found.faults.append(("5xx", request[:600], answer[:600]))


async def watch_health(port: int, found: Findings, every_s: float = 0.1) -> None:
    """Ask /healthz until cancelled, each time anew, and note the slowest answer. Raises where there is none."""
    while True:
        started = time.perf_counter()
        reader, writer = await open_connection(port)
        try:
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            async with asyncio.timeout(_ANSWER_S):
                answer = await reader.read()
        finally:
            writer.transport.abort()
        if not answer.startswith(b"HTTP/1.1 200 "):
            found.faults.append(("health", b"", answer[:300]))
        found.slowest_health_s = max(found.slowest_health_s, time.perf_counter() - started)
        await asyncio.sleep(every_s)


async def drip(port: int, start: bytes, endless: bytes, *, every_s: float = 1.0) -> float:
    """Send `start`, then a piece now and then, until the other side closes; returns the seconds that took."""
    began = time.monotonic()
    reader, writer = await open_connection(port)
    closed = asyncio.ensure_future(reader.read())
    try:
        writer.write(start)
        while not closed.done():
            with suppress(ConnectionError):
                writer.write(endless)
            await asyncio.wait({closed}, timeout=every_s)
        with suppress(ConnectionError):
            await closed
    finally:
        closed.cancel()
        writer.transport.abort()
    return time.monotonic() - began


async def hold_unread(port: int, request: bytes) -> asyncio.StreamWriter:
    """Send a request and read nothing of its answer; the caller aborts the writer's transport."""
    _, writer = await open_connection(port)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(request)
    return writer
