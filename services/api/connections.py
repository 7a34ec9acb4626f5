"""Connections that hold nothing for long: uvicorn's HTTP/1.1 protocol with limits on time, size and number.

uvicorn waits for ever for the rest of a request's head or body, for a client that does not read its answer, and keeps
as many connections as come. Here

    a head        has HEAD_S to arrive, and at most MAX_URL_BYTES, MAX_HEADERS and MAX_HEAD_BYTES
    a body        brings at least PACE_BYTES in every PACE_S, unless this server is the one that does not read
    an answer     moves within STALL_S when its client has left 64 KiB of it unread, as does one whose client is gone
    a connection  has at most MAX_WAITING requests that wait for the answer to one before them
    a client      has at most so many connections in all, and for each address, if that is set

Whoever breaks a limit gets an answer in OpenAI's envelope, where one can still be given, and loses the connection.
"""

from __future__ import annotations

import asyncio
import ipaddress
import resource
import socket
from collections import Counter
from typing import Any

import msgspec
import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from services.api.headers import API_HEADERS
from shared.schemas.errors import ErrorBody, ErrorResponse

HEAD_S = 20.0
PACE_S = 60.0
PACE_BYTES = 16 << 10
STALL_S = 60.0
MAX_URL_BYTES = 16 << 10
MAX_HEADERS = 100
MAX_HEAD_BYTES = 64 << 10
MAX_WAITING = 16
_SPARE_FILES = 256
"""File descriptors that connections leave for Redis, inference servers, files and webhooks."""
_REFUSALS = {
    400: "The request is not HTTP/1.1 as this server reads it.",
    408: "The request did not arrive in time.",
    414: f"The request's URL has more than {MAX_URL_BYTES:,} bytes.",
    431: f"The request has more than {MAX_HEADERS} headers, or they have more than {MAX_HEAD_BYTES:,} bytes.",
    429: f"The connection has more than {MAX_WAITING} requests that wait for the answers to those before them.",
    503: "The server has as many connections as it takes; please try again.",
}

_log = structlog.get_logger()


class Connections:
    """Makes the protocol of each connection, and counts them. `limit` and `limit_each` of 0 are none."""

    def __init__(self, *, limit: int, limit_each: int) -> None:
        room = _raised_file_limit() - _SPARE_FILES
        self._limit = min(limit or room, max(room, 1))
        self._limit_each = limit_each
        self._each: Counter[str] = Counter()
        self._total = 0

    def __call__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> BoundedProtocol:
        return BoundedProtocol(self, config, server_state, app_state, _loop)

    def take(self, address: str) -> bool:
        """Count a connection in; False, and not counted, when there are too many."""
        source = _source(address)
        if self._total >= self._limit or 0 < self._limit_each <= self._each[source]:
            return False
        self._each[source] += 1
        self._total += 1
        return True

    def give_back(self, address: str) -> None:
        """Count a connection out that `take` has counted in."""
        source = _source(address)
        self._total -= 1
        self._each[source] -= 1
        if self._each[source] <= 0:
            del self._each[source]


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        connections_: Connections,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._all = connections_
        self._address: str | None = None
        self._is_refused = False
        self._reading_body = False
        self._undigested = 0
        """Bytes since the parser last had a whole head or a piece of a body: it keeps what it has not whole."""
        self._body_bytes = 0
        self._cycles: list[RequestResponseCycle] = []
        """Requests that are not answered whole, the oldest first: more than one when they come without waiting."""
        self._watch: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _end_silent(transport)
        address = self.client[0] if self.client else ""
        if not self._all.take(address):
            self._refuse(503)
            return
        self._address = address
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        self.resume_writing()
        self._tell_of_end()
        if self._address is not None:
            self._all.give_back(self._address)
            self._address = None
        super().connection_lost(exc)

    def eof_received(self) -> None:
        self._tell_of_end()  # the transport closes itself now, and takes no more

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._undigested += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._undigested > MAX_HEAD_BYTES:
            self._refuse(431)
        elif self._is_idle and self._watch is None and self.timeout_keep_alive_task is None:
            self._await_head()  # only blank lines have come, or the rest of a body that nobody wanted

    def on_message_begin(self) -> None:
        if self._is_refused:  # the parser goes on to the end of what has come
            return
        super().on_message_begin()
        if self._watch is None:
            self._await_head()

    def on_url(self, url: bytes) -> None:
        if not self._is_refused:
            super().on_url(url)

    def on_headers_complete(self) -> None:
        if self._is_refused:
            return
        self._undigested = 0
        self._unwatch()
        if len(self.pipeline) >= MAX_WAITING:
            self._refuse(429)
        elif len(self.url) > MAX_URL_BYTES:
            self._refuse(414)
        elif len(self.headers) > MAX_HEADERS or sum(len(k) + len(v) for k, v in self.headers) > MAX_HEAD_BYTES:
            self._refuse(431)
        if self._is_refused:
            return
        self._reading_body = True
        super().on_headers_complete()
        self._cycles.append(self.cycle)
        self._body_bytes = 0
        self._watch = self.loop.call_later(PACE_S, self._check_pace)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._reading_body and not self._is_refused:  # what comes behind a body is no header of the request
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._undigested = 0
        self._body_bytes += len(body)
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._undigested = 0
        self._reading_body = False
        self._unwatch()
        if not self._is_refused:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete]
        super().on_response_complete()
        if (
            self._reading_body and self.cycle.response_complete
        ):  # of a request that was refused before it had come whole
            self._unwatch()
            self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall is None:
            self._stall = self.loop.call_later(STALL_S, self._abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def send_400_response(self, msg: str) -> None:
        self._refuse(400)

    @property
    def _is_idle(self) -> bool:
        return not self._reading_body and (self.cycle is None or self.cycle.response_complete)

    def _await_head(self) -> None:
        self._watch = self.loop.call_later(HEAD_S, self._refuse, 408)

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _check_pace(self) -> None:
        if self._body_bytes < PACE_BYTES and not self.flow.read_paused:
            self._refuse(408)
            return
        self._body_bytes = 0
        self._watch = self.loop.call_later(PACE_S, self._check_pace)

    def _refuse(self, status: int) -> None:
        """Answer, unless an answer has begun or another is due first, and close."""
        self._unwatch()
        self._is_refused = True
        if self.transport.is_closing():
            return
        busy = self.cycle is not None and not self.cycle.response_complete
        _log.debug("connection.refused", status=status, address=self.client and self.client[0])
        if not busy or (not self.cycle.response_started and not self.pipeline):
            self.transport.write(_answer(status))
        self._tell_of_end()
        self.transport.close()

    def _tell_of_end(self) -> None:
        """Let the application find its client gone, and whatever it still sends go nowhere."""
        for cycle in self._cycles:
            cycle.disconnected = cycle.disconnected or not cycle.response_complete
            cycle.message_event.set()

    def _abort(self) -> None:
        _log.info("connection.stalled", address=self.client and self.client[0])
        self.transport.abort()


def _source(address: str) -> str:
    """Return what an address is counted as: of IPv6 the network of 64 bits that one client may have all of."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:  # of a socket that has none
        return address
    if found.version == 4:
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Address(int(found) >> 64 << 64))


def _answer(status: int) -> bytes:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = msgspec.json.encode(ErrorResponse(error=ErrorBody(message=_REFUSALS[status], type=kind)))
    again = [(b"retry-after", b"1")] if status == 503 else [(b"x-should-retry", b"false")]
    headers = [
        *((b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())),
        *((b"connection", b"close"), *again, *API_HEADERS),
    ]
    return STATUS_LINE[status] + b"".join(b"%s: %s\r\n" % header for header in headers) + b"\r\n" + body


def _end_silent(transport: asyncio.Transport) -> None:
    """Let the kernel end a connection whose other side acknowledges nothing, or has no room, for STALL_S."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, int(STALL_S))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STALL_S * 1000))


def _raised_file_limit() -> int:
    """Let this process open as many files as it may ask for, and return how many that is."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(most, 1 << 20) if most != resource.RLIM_INFINITY else 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return most
