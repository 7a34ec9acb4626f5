"""Two ASGI layers around vLLM's routes: the internal key outside, the adapter's lease inside.

They are plain ASGI, so that vLLM still sees the client's disconnects and every chunk leaves as it is made.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from services.inference.adapters.leases import Lease
from services.inference.http.observing import Answer, observing
from services.inference.http.serving_models import current_lease
from shared.errors import AdapterRejected, NotFound, SelftuneError, TooLarge, Unavailable
from shared.schemas.errors import ErrorBody, ErrorResponse

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEALTH = "/health"
"""The one path that needs no key: 200 while requests are taken, else 503, and no more than that."""
GENERATING_PATHS = frozenset(
    {
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"),
        *("/v1/messages", "/v1/messages/count_tokens", "/v1/responses/render"),
    }
)
RETRY_AFTER_S = 2

_encode = msgspec.json.Encoder().encode
_STATUS: dict[type[SelftuneError], tuple[int, str]] = {
    NotFound: (404, "invalid_request_error"),
    AdapterRejected: (422, "invalid_request_error"),
    TooLarge: (413, "invalid_request_error"),
    Unavailable: (503, "server_error"),
}

_NO_KEY = ErrorBody(
    message="The internal key is missing or wrong.", type="invalid_request_error", code="invalid_api_key"
)


class _Named(Struct):
    model: str | None = None


_decode_named = msgspec.json.Decoder(_Named).decode


class Agent(Protocol):
    """Who knows what may be asked for: an AdapterAgent, or a MergedAgent."""

    base_id: str
    """The name that needs no lease."""

    async def acquire(self, name: str) -> Lease: ...

    def release(self, lease: Lease) -> None: ...


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


class InternalKey:
    """Lets through who knows the key, and tells everybody whether the server is ready."""

    def __init__(self, app: App, key: str, is_ready: Callable[[], bool]) -> None:
        self._app = app
        self._expected = f"Bearer {key}".encode()
        self._is_ready = is_ready

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == HEALTH:
            await send({"type": "http.response.start", "status": 200 if self._is_ready() else 503, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        elif scope["type"] == "lifespan" or self._knows_key(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await send_error(send, 401, _NO_KEY)

    def _knows_key(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, self._expected)


class AdapterAdmission:
    """Holds a lease on the adapter that a request names, from before vLLM sees it until its answer is out."""

    def __init__(self, app: App, agent: Agent, traffic: Traffic, max_body_bytes: int) -> None:
        self._app = app
        self._agent = agent
        self._traffic = traffic
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        generating = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in GENERATING_PATHS
        if not generating:
            await self._app(scope, receive, send)
            return
        with observing(scope, send) as answer:
            await self._admit(scope, receive, answer)

    async def _admit(self, scope: Scope, receive: Receive, answer: Answer) -> None:
        try:
            with self._traffic:
                body = await read_body(receive, self._max_body_bytes)
                await self._serve(body, scope, receive, answer)
        except ClientGone:
            return
        except SelftuneError as error:
            await send_refusal(answer.send, error)

    async def _serve(self, body: bytes, scope: Scope, receive: Receive, answer: Answer) -> None:
        name = model_of(body)
        lease = None if name is None or name == self._agent.base_id else await self._acquire(name, receive)
        token = current_lease.set(lease)
        try:
            await self._app(scope, replayed(body, receive), answer.send)
        except asyncio.CancelledError:
            if lease is None or not lease.lost or answer.started:
                raise
            raise Unavailable("The model was unloaded while it answered; please try again.") from None
        finally:
            current_lease.reset(token)
            if lease is not None:
                self._agent.release(lease)

    async def _acquire(self, name: str, receive: Receive) -> Lease:
        """Wait for a lease for as long as the client does. Raises ClientGone, and what Agent.acquire does."""
        acquiring = asyncio.create_task(self._agent.acquire(name))
        leaving = asyncio.ensure_future(receive())  # the body is whole, so that nothing else can come
        try:
            await asyncio.wait({acquiring, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not acquiring.done():
                raise ClientGone
            lease = acquiring.result()
        except BaseException:
            acquiring.cancel()
            (outcome,) = await asyncio.gather(acquiring, return_exceptions=True)
            if isinstance(outcome, Lease):
                self._agent.release(outcome)
            raise
        finally:
            leaving.cancel()
        lease.task = asyncio.current_task()
        return lease


class Traffic:
    """Counts the requests being answered; once `closed`, no new one enters."""

    def __init__(self) -> None:
        self.running = 0
        self.closed = False

    def __enter__(self) -> None:
        if self.closed:
            raise Unavailable("The server is stopping; please try again.")
        self.running += 1

    def __exit__(self, *_: object) -> None:
        self.running -= 1


def model_of(body: bytes) -> str | None:
    """Return the model a request names; None when it names none or is malformed, which vLLM then says itself."""
    try:
        return _decode_named(body).model
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


async def read_body(receive: Receive, max_bytes: int) -> bytes:
    """Read a request's whole body. Raises TooLarge or ClientGone."""
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise TooLarge(f"The request is larger than {max_bytes} bytes.")
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body in one piece, and after it whatever the connection says."""
    given = False

    async def receive_again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


async def send_refusal(send: Send, error: SelftuneError) -> None:
    """Answer with OpenAI's envelope; only called before anything else was sent."""
    status, kind = next((_STATUS[cls] for cls in type(error).__mro__ if cls in _STATUS), (400, "invalid_request_error"))
    await send_error(send, status, ErrorBody(message=error.message, type=kind, param=error.param, code=error.code))


async def send_error(send: Send, status: int, error: ErrorBody) -> None:
    body = _encode(ErrorResponse(error=error))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 503:
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
