"""Sending to inference servers, without any: when another one is tried, and what is closed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest

from services.api.errors import UpstreamError
from services.api.gateway.outgoing import Asking
from services.api.gateway.replicas import Replicas, _Begun
from shared.errors import Unavailable
from shared.store.client import Client
from shared.store.presence import Presence
from tests.api_server import make_replica

MANY = [make_replica(f"http://host-{number}", id=f"replica-{number}") for number in range(4)]
ASKING = Asking(endpoint="/v1/completions", body=b"{}", model="m", request_id="r", priority=0, sticky="")


class Body(httpx2.AsyncByteStream):
    """A body of given pieces that notes what of it is closed."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces
        self.closed: list[str] = []

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            for piece in self.pieces:
                yield piece
        finally:
            self.closed.append("pieces")

    async def aclose(self) -> None:
        self.closed.append("stream")


def tries(answer: Callable[[], httpx2.Response], raised: type[Exception]) -> int:
    """Have every server answer the same; return how many were asked until `raised` came."""
    asked: list[httpx2.Request] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return answer()

    async def run() -> None:
        replicas = Replicas(Presence(Client("redis://unused")), internal_key="x")
        await replicas.close()
        replicas._http = httpx2.AsyncClient(transport=httpx2.MockTransport(handle))
        with pytest.raises(raised) as caught:
            await replicas.send(MANY, b"{}", ASKING)
        assert caught.type is raised
        await replicas.close()

    asyncio.run(run())
    return len(asked)


@pytest.mark.parametrize(
    ("status", "code", "asked"),
    [
        (500, None, 3), (502, None, 3), (504, None, 3), (503, "store_unavailable", 3), (503, "capacity_exceeded", 1),
        (422, "adapter_unavailable", 3), (422, None, 1), (400, None, 1), (404, "model_not_found", 1), (501, None, 1),
    ],
)  # fmt: skip
def test_another_server_is_tried_where_it_may_do_better(status: int, code: str | None, asked: int) -> None:
    body = {"error": {"message": "no", "type": "x", "param": None, "code": code}}
    refusal = json.dumps(body).encode()
    assert tries(lambda: httpx2.Response(status, stream=Body(refusal)), UpstreamError) == asked


def test_a_gateway_without_connections_left_says_so_at_once() -> None:
    def answer() -> httpx2.Response:
        raise httpx2.PoolTimeout("all in use")

    assert tries(answer, Unavailable) == 1


@pytest.mark.parametrize("is_read", [False, True])
def test_a_stream_that_has_begun_is_closed_with_all_that_is_behind_it(is_read: bool) -> None:
    body = Body(b"a", b"b")

    async def run() -> None:
        pieces: Any = aiter(body)
        begun = _Begun(await anext(pieces), pieces, body)
        if is_read:
            assert [piece async for piece in begun] == [b"a", b"b"]
        await begun.aclose()

    asyncio.run(run())
    assert body.closed == ["pieces", "stream"]


class Cut(Body):
    """A body whose server goes away after the first piece."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.pieces[0]
        raise httpx2.ReadError("gone")


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
def test_answer_that_is_cut_begins_again_elsewhere_unless_it_is_a_stream(kind: str) -> None:
    first, second = Cut(b'{"half'), Body(b"{}")
    bodies = [first, second]

    async def run() -> bytes:
        replicas = Replicas(Presence(Client("redis://unused")), internal_key="x")
        await replicas.close()
        replicas._http = httpx2.AsyncClient(
            transport=httpx2.MockTransport(
                lambda _: httpx2.Response(200, headers={"content-type": kind}, stream=bodies.pop(0))
            )
        )
        try:
            return await (await replicas.send(MANY[:2], b"{}", ASKING)).aread()
        finally:
            await replicas.close()

    if kind == "application/json":
        assert asyncio.run(run()) == b"{}"
    else:
        with pytest.raises(httpx2.ReadError):
            asyncio.run(run())
        assert bodies == [second], "its beginning may be with the client"
    assert "stream" in first.closed
