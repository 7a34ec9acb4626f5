"""One request to one model: how long it took, how it ended, and what of the answer is worth keeping."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Literal

import httpx2
import msgspec
from msgspec import Raw, Struct

from services.api.batches.usage import usage_of
from services.api.errors import UpstreamError
from services.api.gateway.sse_pieces import data_of
from services.api.gateway.upstream_errors import is_servers_failure
from shared.errors import NoReplica
from shared.schemas.batches import BatchUsage

Ending = Literal["answered", "failed", "refused", "abandoned"]

TIMEOUT_S = 30.0
"""A client that leaves after so long without a byte has given up on the model; that counts as the model's failure."""
KEPT_BYTES = 1 << 20
_TAIL_BYTES = 16 << 10
_FAULT = re.compile(rb'^(?:data: \{"error":|event: (?:error|response\.failed)\b)', re.MULTILINE)
"""How streams tell of an error; inside a text the line's end would be escaped."""
_LAST = re.compile(
    rb"^(?:data: \[DONE\]|event: (?:response\.completed|response\.incomplete|message_stop))$", re.MULTILINE
)


class Outcome(Struct, frozen=True, kw_only=True):
    """How a request ended."""

    ending: Ending
    first_byte_ms: float | None = None
    total_ms: float
    usage: BatchUsage = BatchUsage()
    kept: bytes = b""
    """The answer, as far as it was kept."""
    is_stream: bool = False
    truncated: bool = False
    """Whether `kept` is only a part of what was to be kept."""


class Trip:
    """From sending to the end, whatever ends it; `on_end` is called once."""

    def __init__(self, on_end: Callable[[Outcome], None], *, keep: bool) -> None:
        self._on_end = on_end
        self._keep = keep
        self._started = time.perf_counter()
        self._first_byte_ms: float | None = None
        self._is_stream = False
        self._kept = bytearray()
        self._left_out = False
        self._faulty = False
        self._over = False

    def follow(self, response: httpx2.Response) -> None:
        """Watch an answer that was opened: what reads it goes through this trip."""
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        self._is_stream = str(response.headers.get("content-type", "")).startswith("text/event-stream")
        response.stream = _Followed(response.stream, self)

    def take(self, piece: bytes) -> None:
        """Take note of a piece of the answer."""
        if self._first_byte_ms is None:
            self._first_byte_ms = self._elapsed_ms()
        if self._is_stream and _FAULT.search(piece):
            self._faulty = True
        self._kept += piece
        if self._keep or not self._is_stream:
            self._left_out = self._left_out or len(self._kept) > KEPT_BYTES
            del self._kept[KEPT_BYTES:]
        else:
            del self._kept[:-_TAIL_BYTES]

    def refuse(self, error: Exception) -> None:
        """End with an error of the gateway or of the inference server."""
        broken = is_servers_failure(error) if isinstance(error, UpstreamError) else isinstance(error, NoReplica)
        self.end("failed" if broken else "refused")

    def leave(self) -> None:
        """End because nobody reads on: the client left, or has had the last event of a stream."""
        if self._is_stream and _LAST.search(self._kept):
            self.end("answered")
            return
        waited_in_vain = self._first_byte_ms is None and self._elapsed_ms() >= TIMEOUT_S * 1000
        self.end("failed" if waited_in_vain else "abandoned")

    def end(self, ending: Ending) -> None:
        if self._over:
            return
        self._over = True
        kept = bytes(self._kept)
        self._on_end(
            Outcome(
                ending="failed" if self._faulty else ending,
                first_byte_ms=self._first_byte_ms,
                total_ms=self._elapsed_ms(),
                usage=_usage_in(kept, is_stream=self._is_stream) if ending == "answered" else BatchUsage(),
                kept=kept,
                is_stream=self._is_stream,
                truncated=self._left_out,
            )
        )

    def _elapsed_ms(self) -> float:
        return (time.perf_counter() - self._started) * 1000


class _Followed(httpx2.AsyncByteStream):
    """An answer's bytes, as they come."""

    def __init__(self, stream: httpx2.AsyncByteStream, trip: Trip) -> None:
        self._stream = stream
        self._trip = trip

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = aiter(self._stream)
        try:
            async for piece in pieces:
                self._trip.take(piece)
                yield piece
        except httpx2.TransportError:
            self._trip.end("failed")
            raise
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()
        self._trip.end("answered")

    async def aclose(self) -> None:
        self._trip.leave()
        await self._stream.aclose()


class _Ended(Struct):
    response: Raw = Raw(b"null")


_decode_ended = msgspec.json.Decoder(_Ended).decode


def _usage_in(kept: bytes, *, is_stream: bool) -> BatchUsage:
    """Read the usage of an answer, or of the last event that has one; zeros where there is none to read."""
    answers = [data_of(event) for event in reversed(kept.split(b"\n\n"))] if is_stream else [kept]
    for answer in answers:
        if answer is None or b'"usage"' not in answer:
            continue
        try:
            inner = bytes(_decode_ended(answer).response)
            usage = usage_of(answer if inner == b"null" else inner)
        except msgspec.MsgspecError:
            continue
        if usage.total_tokens:
            return usage
    return BatchUsage()
