"""What is known of a request while it is answered: its ids in every line, its span, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import structlog

from services.inference import metrics
from shared import tracing
from shared.internal_headers import PROJECT_HEADER

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

NOBODY = "none"
"""Stands for the project of requests that no client made, as the trainer's own."""

current_project: ContextVar[str] = ContextVar("current_project", default=NOBODY)
"""The project of the request that this task serves."""

_TRACE = (tracing.TRACEPARENT.encode(), tracing.TRACESTATE.encode())

log = structlog.get_logger()


class Answer:
    """Passes a response on, and remembers whether it has begun and how."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        """0 before it has begun."""

    @property
    def started(self) -> bool:
        return bool(self.status)

    async def send(self, message: Message) -> None:
        self.status = self.status or message.get("status", 0)
        await self._send(message)


@contextmanager
def observing(scope: MutableMapping[str, Any], send: Send) -> Iterator[Answer]:
    """Observe one request; vLLM's spans become children of its span. One line is logged at its end."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope.get("headers", ())}
    answer, began, path = Answer(send), time.perf_counter(), scope["path"]
    request_id = headers.get("x-request-id", "")
    token = current_project.set(headers.get(PROJECT_HEADER) or NOBODY)
    with (
        tracing.span(f"inference {path}", parent=headers, kind="server", request_id=request_id) as span,
        structlog.contextvars.bound_contextvars(request_id=request_id),
    ):
        if tracing.is_on():
            ours = [(name.encode(), value.encode()) for name, value in span.headers.items()]
            scope["headers"] = [*(pair for pair in scope.get("headers", ()) if pair[0] not in _TRACE), *ours]
        try:
            yield answer
        finally:
            current_project.reset(token)
            metrics.REQUESTS.labels(path, str(answer.status or 499)).inc()
            if answer.status >= 500:
                span.fail(f"status {answer.status}")
            log.info("request.done", path=path, status=answer.status, ms=round((time.perf_counter() - began) * 1000))
