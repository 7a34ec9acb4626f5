"""The way back: an open upstream answer as an ASGI response, ended with whichever side goes first."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio
import httpx2
import msgspec
import structlog
from litestar.types import Receive, Scope, Send

from services.api.bodies import ClientGone
from services.api.errors import SERVER_ERROR
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


class Relay:
    """Sends status, content type and bytes as they come, and closes the upstream at the end, whatever ends it."""

    def __init__(self, upstream: httpx2.Response) -> None:
        self._upstream = upstream
        self._kind = upstream.headers.get("content-type", "application/json")

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(self._pump(send), receive)
        except ClientGone:
            _log.info("gateway.client_gone")
        finally:
            # Shielded, so that a cancelled request still tells the replica to stop generating.
            with anyio.move_on_after(_CLOSE_S, shield=True):
                await self._upstream.aclose()

    async def _pump(self, send: Send) -> None:
        headers = [(b"content-type", self._kind.encode("latin-1"))]
        if self._kind.startswith(_EVENT_STREAM):
            headers.append((b"cache-control", b"no-cache"))
        await send({"type": "http.response.start", "status": self._upstream.status_code, "headers": headers})
        tail = b"\n\n"
        try:
            async for piece in self._upstream.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                tail = (tail + piece)[-2:]
        except httpx2.TransportError as error:
            _log.warning("gateway.upstream_cut", reason=type(error).__name__)
            if not self._kind.startswith(_EVENT_STREAM) or tail != b"\n\n":
                return  # without its end the answer is not whole, and the server cuts the connection
            await send({"type": "http.response.body", "body": _STREAM_ERROR, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


_STREAM_ERROR = (
    b"data: "
    + msgspec.json.encode(
        ErrorResponse(
            error=ErrorBody(
                message="The inference server went away in the middle of the answer; please try again.",
                type=SERVER_ERROR,
                code="upstream_error",
            )
        )
    )
    + b"\n\n"
)
"""An event that OpenAI's SDK raises as APIError."""
