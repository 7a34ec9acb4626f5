"""A load generator that costs little: HTTP/1.1 over asyncio's protocols, one request at a time on each connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_HEAD_END = b"\r\n\r\n"


def request(method: str, path: str, *, key: str, body: bytes = b"") -> bytes:
    """Form a request's bytes."""
    head = f"{method} {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\n"
    if body:
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


class Connection(asyncio.Protocol):
    """Sends a request, and gives the status of its whole answer. Only answers with a content-length are understood."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._answer: asyncio.Future[int] | None = None

    @classmethod
    async def open(cls, port: int) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, "127.0.0.1", port)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("closed in the middle of an answer"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head = self._received.find(_HEAD_END)
        if head < 0 or self._answer is None:
            return
        lowered = bytes(self._received[:head]).lower()
        length = int(lowered.partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(self._received) >= head + 4 + length:
            status = int(self._received[9:12])
            self._received.clear()
            self._answer.set_result(status)

    async def ask(self, sent: bytes) -> int:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(sent)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


@dataclass
class Load:
    """What a load has met: milliseconds of every answer, and everything that was not 200."""

    latencies_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def per_s(self) -> float:
        return len(self.latencies_ms) / self.took_s


async def at_rate(port: int, make: Callable[[int], bytes], *, per_s: float, seconds: float, connections: int) -> Load:
    """Send requests at a fixed rate, whatever comes back; latency counts from when a request was due.

    So an answer that is late makes those behind it late, too, instead of hiding them ("coordinated omission").
    """
    load, begun, total = Load(), time.perf_counter(), int(per_s * seconds)
    due = iter(range(total))

    async def work() -> None:
        connection = await Connection.open(port)
        for number in due:
            at = begun + number / per_s
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            await _one(connection, make(number), load, at)
        connection.close()

    await asyncio.gather(*(work() for _ in range(connections)))
    load.took_s = time.perf_counter() - begun
    return load


async def as_fast_as_it_goes(port: int, make: Callable[[int], bytes], *, seconds: float, connections: int) -> Load:
    """Send a request on each connection as soon as the one before is answered."""
    load, begun = Load(), time.perf_counter()

    async def work(first: int) -> None:
        connection = await Connection.open(port)
        number = first
        while time.perf_counter() - begun < seconds:
            await _one(connection, make(number), load, time.perf_counter())
            number += connections
        connection.close()

    await asyncio.gather(*(work(number) for number in range(connections)))
    load.took_s = time.perf_counter() - begun
    return load


async def _one(connection: Connection, sent: bytes, load: Load, since: float) -> None:
    try:
        status = await connection.ask(sent)
    except ConnectionError as error:
        load.errors.append(str(error))
        return
    load.latencies_ms.append((time.perf_counter() - since) * 1000)
    if status != 200:
        load.errors.append(str(status))


def row(name: str, load: Load, percentile: Callable[[Sequence[float], float], float]) -> list[str | float]:
    """Form a line of the table: name, answers a second, milliseconds at 50, 99 and all, errors."""
    times = load.latencies_ms
    return [name, load.per_s, percentile(times, 0.5), percentile(times, 0.99), max(times), float(len(load.errors))]
