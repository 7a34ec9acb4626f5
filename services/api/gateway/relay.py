"""The way back: an open upstream answer as an ASGI response, ended with whichever side goes first.

Streams go through as they come. Other answers are read whole first, so that an answer cut short becomes an error with
a status, and so that it can be kept before the client has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

import anyio
import httpx2
import msgspec
import structlog
from litestar.types import Receive, Scope, Send

from services.api import metrics
from services.api.bodies import ClientGone
from services.api.errors import SERVER_ERROR, UpstreamError
from shared.errors import StoreUnavailable
from shared.schemas.errors import ErrorBody, ErrorResponse

_log = structlog.get_logger()

T = TypeVar("T")

_CLOSE_S = 5.0
_EVENT_STREAM = "text/event-stream"


async def unless_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """Do `work` while the client is there; when it leaves, cancel the work and raise ClientGone.

    The request's body must have been read: whatever arrives from `receive` is taken for the client's leaving.
    """
    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientGone
    finally:
        doing.cancel()
        leaving.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Keeper(Protocol):
    """Looks at a stream's bytes on their way out."""

    async def feed(self, piece: bytes) -> bytes:
        """Take note of a piece and return what goes out in its place, which may be nothing yet.

        Raises StoreUnavailable when the answer could not be kept.
        """


def is_stream(upstream: httpx2.Response) -> bool:
    return str(upstream.headers.get("content-type", "")).startswith(_EVENT_STREAM)


async def read_unless_stream(opening: Coroutine[Any, Any, httpx2.Response]) -> httpx2.Response | bytes:
    """Wait for an upstream answer; return it still open if it is a stream, else its whole body."""
    upstream = await opening
    return upstream if is_stream(upstream) else await read_whole(upstream)


async def read_whole(upstream: httpx2.Response) -> bytes:
    """Return an answer's body and close it. Raises UpstreamError when it is cut short."""
    try:
        return await upstream.aread()
    except httpx2.TransportError as error:
        _log.warning("gateway.upstream_cut", reason=type(error).__name__)
        metrics.UPSTREAM_ERRORS.labels("cut").inc()
        raise UpstreamError(502, _WENT_AWAY) from error
    finally:
        await _close(upstream)


async def _close(upstream: httpx2.Response) -> None:
    # Shielded, so that a cancelled request still tells the replica to stop generating.
    with anyio.move_on_after(_CLOSE_S, shield=True):
        await upstream.aclose()


class Whole:
    """Sends a JSON body."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(self._body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self._body, "more_body": False})


class Relay:
    """Sends status, content type and bytes as they come, and closes the upstream at the end, whatever ends it."""

    def __init__(self, upstream: httpx2.Response, keeper: Keeper | None = None) -> None:
        self._upstream = upstream
        self._kind = upstream.headers.get("content-type", "application/json")
        self._keeper = keeper

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(self._pump(send), receive)
        except ClientGone:
            _log.info("gateway.client_gone")
        finally:
            await _close(self._upstream)

    async def _pump(self, send: Send) -> None:
        headers = [(b"content-type", self._kind.encode("latin-1")), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": self._upstream.status_code, "headers": headers})
        tail = b"\n\n"
        try:
            async for piece in self._upstream.aiter_raw():
                passed = piece if self._keeper is None else await self._keeper.feed(piece)
                if passed:
                    await send({"type": "http.response.body", "body": passed, "more_body": True})
                    tail = (tail + passed)[-2:]
        except httpx2.TransportError as error:
            _log.warning("gateway.upstream_cut", reason=type(error).__name__)
            metrics.UPSTREAM_ERRORS.labels("cut").inc()
            if tail != b"\n\n":
                return  # without its end the answer is not whole, and the server cuts the connection
            await send({"type": "http.response.body", "body": _STREAM_ERROR, "more_body": True})
        except StoreUnavailable as error:
            _log.warning("gateway.not_kept", reason=error.message)
            if tail != b"\n\n":
                return
            await send({"type": "http.response.body", "body": _NOT_KEPT, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _event(error: ErrorBody) -> bytes:
    """Form an event that OpenAI's SDK raises as APIError."""
    return b"data: " + msgspec.json.encode(ErrorResponse(error=error)) + b"\n\n"


_WENT_AWAY = ErrorBody(
    message="The inference server went away in the middle of the answer; please try again.",
    type=SERVER_ERROR,
    code="upstream_error",
)
_STREAM_ERROR = _event(_WENT_AWAY)
_NOT_KEPT = _event(
    ErrorBody(
        message="The answer could not be stored: the database does not answer; please try again.",
        type=SERVER_ERROR,
        code="store_unavailable",
    )
)
