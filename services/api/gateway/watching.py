"""One request to a model, watched from the look for a server to the end of the answer: counted, timed, traced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import httpx2

from services.api import metrics
from services.api.errors import UpstreamError
from services.api.gateway.outgoing import Asking
from shared import tracing
from shared.errors import NoReplica, ReplicaLost, SelftuneError, Unavailable


class Watch:
    """Begins when it is made; ends once, with failed(), cut() or end()."""

    def __init__(self, asking: Asking, model: str) -> None:
        self._endpoint = asking.endpoint
        self._labels = metrics.tenant(asking.project, model)
        self._began = time.perf_counter()
        self._is_over = False
        self._span = tracing.begin(
            f"gateway {asking.endpoint}", kind="client", request_id=asking.request_id, model=model
        )

    @property
    def headers(self) -> dict[str, str]:
        """The trace, for the inference server."""
        return self._span.headers

    def first_byte(self) -> None:
        metrics.FIRST_BYTE_SECONDS.labels(self._endpoint).observe(time.perf_counter() - self._began)

    def failed(self, error: BaseException) -> None:
        """End without an answer."""
        outcome = outcome_of(error)
        if outcome != "gone":
            self._span.fail(outcome)
        self._end(outcome)

    def cut(self) -> None:
        """End in the middle of an answer: its server went away."""
        self._span.fail("cut")
        self._end("cut")

    def end(self) -> None:
        """End with the answer, or with as much of it as the client wanted; a second time changes nothing."""
        if not self._is_over:
            metrics.GATEWAY_SECONDS.labels(self._endpoint).observe(time.perf_counter() - self._began)
            self._end("answered")

    def _end(self, outcome: str) -> None:
        if not self._is_over:
            self._is_over = True
            metrics.GATEWAY_REQUESTS.labels(*self._labels, outcome).inc()
            self._span.end()


def watched(response: httpx2.Response, watch: Watch) -> httpx2.Response:
    """Have the watch end when an answer is closed, whoever closes it; its first byte, or all of it, is here."""
    watch.first_byte()
    if response.is_closed:
        watch.end()
        return response
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _Watched(response.stream, watch)
    return response


class _Watched(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, watch: Watch) -> None:
        self._stream = stream
        self._pieces: AsyncIterator[bytes] | None = None
        self._watch = watch

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._pieces = aiter(self._stream)
        return self

    async def __anext__(self) -> bytes:
        assert self._pieces is not None
        try:
            return await anext(self._pieces)
        except httpx2.TransportError:
            self._watch.cut()
            raise

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._watch.end()


def outcome_of(error: BaseException) -> str:
    """Name what became of a request that has no answer."""
    match error:
        case asyncio.CancelledError():
            return "gone"
        case ReplicaLost():
            return "lost"
        case NoReplica():
            return "no_replica"
        case UpstreamError(status=status):
            return "refused" if status < 500 else "failed"
        case Unavailable():
            return "busy"
        case SelftuneError():
            return "refused"
    return "failed"
