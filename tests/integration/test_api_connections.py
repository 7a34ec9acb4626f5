"""The limits on connections, on a real uvicorn with a small application and short times."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from services.api import connections
from services.api.connections import Connections
from tests.api_server import wait_until

PIECE = b"x" * 65_536


class Echo:
    """Answers with the size of the body; at /endless with pieces until it is cut, at /early before the body is read."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.sent = 0
        self.under_way = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.headers = scope["headers"]
        self.under_way += 1
        try:
            await self._answer(scope["path"], receive, send)
        finally:
            self.under_way -= 1

    async def _answer(self, path: str, receive: Any, send: Any) -> None:
        size, more = 0, path not in ("/early", "/endless")
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size, more = size + len(message["body"]), message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while path == "/endless":
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            self.sent += len(PIECE)
            message_ = asyncio.ensure_future(receive())
            done, _ = await asyncio.wait({message_}, timeout=0)
            if done and message_.result()["type"] == "http.disconnect":
                return
            message_.cancel()
        await send({"type": "http.response.body", "body": str(size).encode()})


class Running:
    """The server in a thread."""

    def __init__(self, *, limit: int = 0, limit_each: int = 0) -> None:
        self.app = Echo()
        config = uvicorn.Config(
            self.app, port=0, log_config=None, lifespan="off", ws="none", server_header=False,
            http=Connections(limit=limit, limit_each=limit_each),  # type: ignore[arg-type]
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self.server.started)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def open_connections(self) -> int:
        return len(self.server.server_state.connections)

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(timeout=20)


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(**limits: int) -> Running:
        started.append(Running(**limits))
        return started[-1]

    yield start
    for running in started:
        running.stop()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.5)
    monkeypatch.setattr(connections, "PACE_S", 0.5)
    monkeypatch.setattr(connections, "STALL_S", 1.0)


def answer_of(sock: socket.socket) -> bytes:
    """Read until the other side closes."""
    found = b""
    try:
        while piece := sock.recv(65_536):
            found += piece
    except ConnectionResetError:
        pass
    return found


def drip(sock: socket.socket, data: bytes, *, every_s: float = 0.05) -> float:
    """Send byte by byte until the other side has closed; returns the seconds that took."""
    started = time.monotonic()
    sock.setblocking(False)
    for number in range(len(data)):
        try:
            sock.send(data[number : number + 1])
        except OSError:
            break
        time.sleep(every_s)
        try:
            if sock.recv(1, socket.MSG_PEEK) is not None:
                break
        except BlockingIOError:
            continue
        except OSError:
            break
    sock.settimeout(20)
    return time.monotonic() - started


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    "dripped", [b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 400, b"\r\n" * 200, b""], ids=["head", "blank", "nothing"]
)
def test_head_that_does_not_come_is_408_and_the_end(run: Callable[..., Running], dripped: bytes) -> None:
    running = run()
    with running.connect() as sock:
        assert drip(sock, dripped) < 5
        answer = answer_of(sock)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"x-content-type-options: nosniff" in answer and b'{"error":{"message":' in answer


@pytest.mark.usefixtures("short")
def test_body_byte_by_byte_is_408_and_the_application_hears_of_it(run: Callable[..., Running]) -> None:
    running = run()
    with running.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")
        assert drip(sock, b"b" * 400) < 5
        assert answer_of(sock).startswith(b"HTTP/1.1 408 ")
    wait_until(lambda: running.app.under_way == 0)


@pytest.mark.usefixtures("short")
def test_steady_body_may_take_longer_than_any_window(run: Callable[..., Running]) -> None:
    running, piece = run(), b"b" * (connections.PACE_BYTES // 2)
    with running.connect() as sock:
        sock.sendall(
            b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (len(piece) * 20)
        )
        for _ in range(20):
            sock.sendall(piece)
            time.sleep(0.1)
        answer = answer_of(sock)
    assert answer.startswith(b"HTTP/1.1 200 ") and str(len(piece) * 20).encode() in answer


@pytest.mark.usefixtures("short")
def test_rest_of_a_body_that_nobody_wants_ends_the_connection(run: Callable[..., Running]) -> None:
    running = run()
    with running.connect() as sock:
        sock.sendall(b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")
        wait_until(lambda: sock.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 200")
        started = time.monotonic()
        while time.monotonic() - started < 10 and running.open_connections():
            try:
                sock.send(b"b")
            except OSError:
                break
            time.sleep(0.05)
        assert time.monotonic() - started < 5
    wait_until(lambda: running.open_connections() == 0)


@pytest.mark.usefixtures("short")
def test_reader_that_does_not_read_is_cut_and_fills_no_memory(run: Callable[..., Running]) -> None:
    running = run()
    with running.connect() as sock:
        sock.sendall(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
        wait_until(lambda: running.app.sent > 0)
        wait_until(lambda: running.app.under_way == 0, timeout_s=20)
    assert running.app.sent < 32 << 20  # what the kernel holds for a connection on this machine, not more
    wait_until(lambda: running.open_connections() == 0)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * 17_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
        (b"GET /?" + b"a" * 17_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 101 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 300_000, 431),
        (b"GET /" + b"a" * 300_000, 431),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nb\r\n0\r\nx: " + b"y" * 300_000, 431),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", 400),
    ],
    ids=range(11),
)
def test_large_and_broken_heads_are_refused(run: Callable[..., Running], head: bytes, status: int) -> None:
    running = run()
    with running.connect() as sock:
        with contextlib.suppress(OSError):
            sock.sendall(head)
        answer = answer_of(sock)
    if answer:  # a kernel that has unread bytes left may reset the connection before the answer is read
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    wait_until(lambda: running.open_connections() == 0)


def test_headers_behind_the_body_are_none_of_the_request(run: Callable[..., Running]) -> None:
    running = run()
    with running.connect() as sock:
        sock.sendall(
            b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
            b"1\r\nb\r\n0\r\nauthorization: Bearer late\r\n\r\n"
        )
        assert answer_of(sock).startswith(b"HTTP/1.1 200 ")
    assert b"authorization" not in dict(running.app.headers)


def test_pipelined_requests_are_answered_in_order(run: Callable[..., Running]) -> None:
    running = run()
    first = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc"
    last = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 5\r\n\r\nabcde"
    with running.connect() as sock:
        sock.sendall(first * 3 + last)
        answer = answer_of(sock)
    assert answer.count(b"HTTP/1.1 200 ") == 4
    assert [part[:1] for part in answer.split(b"\r\n\r\n1\r\n")[1:]] == [b"3", b"3", b"3", b"5"]


def test_requests_that_do_not_wait_are_few(run: Callable[..., Running]) -> None:
    running, largest = run(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    flood = threading.Thread(target=_flood, args=(running, b"GET / HTTP/1.1\r\n\r\n" * 20_000))
    flood.start()
    while flood.is_alive():
        started = time.monotonic()
        with running.connect() as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert answer_of(sock).startswith(b"HTTP/1.1 200 ")
        assert time.monotonic() - started < 1
    flood.join()
    wait_until(lambda: running.open_connections() == 0 and running.app.under_way == 0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - largest < 16 << 10  # KiB


def _flood(running: Running, data: bytes) -> None:
    """Send without reading until the other side has closed."""
    with running.connect() as sock:
        with contextlib.suppress(OSError):
            sock.sendall(data)
        assert answer_of(sock).count(b"HTTP/1.1 200 ") <= connections.MAX_WAITING + 1


def test_addresses_of_one_network_are_one_client() -> None:
    counted = Connections(limit=0, limit_each=1)
    assert counted.take("2001:db8::1") and not counted.take("2001:db8:0:0:ffff::2") and counted.take("2001:db8:0:1::1")
    assert counted.take("10.0.0.1") and not counted.take("::ffff:10.0.0.1") and counted.take("10.0.0.2")
    counted.give_back("2001:db8::3")
    assert counted.take("2001:db8::1") and counted.take("")


def test_connections_beyond_the_limit_get_503_and_room_comes_back(run: Callable[..., Running]) -> None:
    running = run(limit=3)
    held = [running.connect() for _ in range(3)]
    wait_until(lambda: running.open_connections() == 3)
    with running.connect() as sock:
        assert answer_of(sock).startswith(b"HTTP/1.1 503 ")
    held.pop().close()
    wait_until(lambda: running.open_connections() == 2)
    with running.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert answer_of(sock).startswith(b"HTTP/1.1 200 ")
    for sock in held:
        sock.close()


def test_one_address_does_not_take_the_room_of_others(run: Callable[..., Running]) -> None:
    running = run(limit_each=2)
    with running.connect(), running.connect():
        wait_until(lambda: running.open_connections() == 2)
        with running.connect() as third:
            assert answer_of(third).startswith(b"HTTP/1.1 503 ")
        with socket.create_connection(("127.0.0.1", running.port), source_address=("127.0.0.2", 0)) as other:
            other.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert answer_of(other).startswith(b"HTTP/1.1 200 ")
