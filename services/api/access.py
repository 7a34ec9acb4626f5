"""Around the whole app: a request id, OpenAI's response headers, one log line a request, no half answers.

This is plain ASGI because Litestar's own middleware does not run for unknown routes and methods.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from services.api import metrics
from services.api.audit import trail
from services.api.gateway.outgoing import ANSWERED_BY
from services.api.headers import with_defaults
from services.api.limits import remaining_headers
from services.api.model_paths import routable
from shared import ids, tracing

_log = structlog.get_logger()

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET = frozenset({"/healthz", "/readyz"})
"""Asked every few seconds by supervisors; logged at debug level."""


class Access:
    """Wraps an ASGI app."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        answer = _Answer(ids.new_request_id(), state, send)
        state["request_id"] = answer.request_id
        method, path = str(scope.get("method", "")), scope["path"]
        scope["path"] = routable(path)
        with _traced(scope, answer), structlog.contextvars.bound_contextvars(request_id=answer.request_id):
            metrics.REQUESTS_IN_FLIGHT.inc()
            try:
                await self._app(scope, receive, answer.send)
            except Exception:  # noqa: BLE001 - the outermost frame: what gets here is logged and ends the connection
                # The status is on the wire already. Returning makes the server cut the connection, which is how a
                # client learns that the body is not whole.
                _log.error("request.cut", path=path, exc_info=True)
            finally:
                metrics.REQUESTS_IN_FLIGHT.dec()
                await answer.settle()
                answer.log(method, path)
                answer.count(scope)


@contextmanager
def _traced(scope: Scope, answer: _Answer) -> Iterator[None]:
    """Have a span for the request, which goes on with the client's trace where it sends one."""
    if not tracing.is_on():
        yield
        return
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    method, route = _labels(scope)
    with tracing.span(f"{method} {route}", parent=headers, kind="server", request_id=answer.request_id) as span:
        try:
            yield
        finally:
            span.rename(" ".join(_labels(scope)))
            span.note(status=answer.status)
            if answer.status >= 500:
                span.fail(f"status {answer.status}")


def _labels(scope: Scope) -> tuple[str, str]:
    """Return method and route, each one of a few: what no route takes is `unknown`."""
    method = str(scope.get("method", ""))
    return (method if method in _METHODS else "OTHER"), str(scope.get("path_template") or "unknown")


def request_id_of(scope: Scope) -> str:
    """Return the id that goes out as x-request-id."""
    return str(scope["state"]["request_id"])


class _Answer:
    """One response on its way out."""

    def __init__(self, request_id: str, state: dict[str, Any], send: Send) -> None:
        self.request_id = request_id
        self._state = state
        self._send = send
        self._started = time.perf_counter()
        self._status: int | None = None
        self._held: Message | None = None
        self._bytes = 0

    @property
    def status(self) -> int:
        """The status that was sent; 499 for a request that ended without one, as a client's that has gone."""
        return self._status or 499

    def count(self, scope: Scope) -> None:
        labels = _labels(scope)
        metrics.REQUESTS.labels(*labels, f"{self.status // 100}xx").inc()
        metrics.REQUEST_SECONDS.labels(*labels).observe(time.perf_counter() - self._started)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message["headers"] = [
                *with_defaults(message["headers"]),
                (b"x-request-id", self.request_id.encode()),
                (b"openai-version", b"2020-10-01"),
                (b"openai-processing-ms", str(self._elapsed_ms()).encode()),
                *remaining_headers(self._state),
                *_answered_by(self._state),
            ]
            if trail.is_recorded(self._state):
                self._held = message  # its body tells what was made, and nothing goes out before that is recorded
                return
        elif message["type"] == "http.response.body":
            self._bytes += len(message["body"])
            await self._let_go(message["body"])
        await self._send(message)

    async def settle(self) -> None:
        """Record a change whose answer did not come."""
        recorded = trail.take(self._state)
        if recorded is not None:
            await recorded.end(None)

    async def _let_go(self, body: bytes) -> None:
        held, self._held = self._held, None
        recorded = trail.take(self._state)
        if held is not None and recorded is not None:
            await recorded.end(held["status"], body)  # type: ignore[typeddict-item]
        if held is not None:
            await self._send(held)

    def log(self, method: str, path: str) -> None:
        write = _log.debug if path in _QUIET else _log.info
        write(
            "request.done",
            method=method,
            path=path,
            status=self._status,
            ms=self._elapsed_ms(),
            response_bytes=self._bytes,
        )

    def _elapsed_ms(self) -> int:
        return round((time.perf_counter() - self._started) * 1000)


def _answered_by(state: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    """Return the header that names the model that answered, if one did."""
    return [(ANSWERED_BY.encode(), state[ANSWERED_BY].encode())] if ANSWERED_BY in state else []
