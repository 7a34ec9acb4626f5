from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from services.inference.adapters.leases import Lease
from services.inference.adapters.turns import Busy
from services.inference.http.admission import (
    AdapterAdmission,
    ClientGone,
    InternalKey,
    Traffic,
    model_of,
    read_body,
    replayed,
    send_refusal,
)
from shared.errors import AdapterRejected, NotFound, StoreUnavailable, TooLarge, Unavailable

Message = MutableMapping[str, Any]


class Wire:
    """One connection: gives out prepared messages and keeps what is sent."""

    def __init__(self, *incoming: Message) -> None:
        self.incoming = list(incoming)
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        return self.incoming.pop(0)

    async def send(self, message: Message) -> None:
        self.sent.append(message)


def part(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def test_body_is_read_whole_and_given_again() -> None:
    async def story() -> None:
        wire = Wire(part(b'{"mod', more=True), part(b'el":"x"}'), {"type": "http.disconnect"})
        body = await read_body(wire.receive, 100)
        receive = replayed(body, wire.receive)
        assert await receive() == part(b'{"model":"x"}')
        assert await receive() == {"type": "http.disconnect"}

    asyncio.run(story())


def test_body_over_the_limit_is_refused_before_it_is_whole() -> None:
    with pytest.raises(TooLarge):
        asyncio.run(read_body(Wire(part(b"x" * 11, more=True)).receive, 10))


def test_client_that_leaves_before_its_body_is_whole() -> None:
    with pytest.raises(ClientGone):
        asyncio.run(read_body(Wire(part(b"x", more=True), {"type": "http.disconnect"}).receive, 10))


@pytest.mark.parametrize(
    ("body", "model"),
    [(b'{"model":"m","x":[1]}', "m"), (b"{}", None), (b"not json", None), (b'{"model":3}', None), (b"\xff", None)],
)
def test_model_of(body: bytes, model: str | None) -> None:
    assert model_of(body) == model


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotFound("x"), 404),
        (AdapterRejected("x"), 422),
        (Busy("x"), 503),
        (StoreUnavailable("x"), 503),
        (TooLarge("x"), 413),
    ],
)
def test_refusals_have_openais_status(error: Any, status: int) -> None:
    wire = Wire()
    asyncio.run(send_refusal(wire.send, error))
    assert wire.sent[0]["status"] == status
    assert (b"retry-after" in dict(wire.sent[0]["headers"])) == (status == 503)


def test_no_request_enters_once_traffic_is_closed() -> None:
    traffic = Traffic()
    with traffic:
        assert traffic.running == 1
        traffic.closed = True
    with pytest.raises(Unavailable), traffic:
        pass
    assert traffic.running == 0


@pytest.mark.parametrize(
    ("path", "header", "is_ready", "status"),
    [
        ("/v1/models", b"Bearer key", True, 204),
        ("/v1/models", b"Bearer kex", True, 401),
        ("/v1/models", b"", True, 401),
        ("/metrics", b"", True, 401),
        ("/health", b"", True, 200),
        ("/health", b"", False, 503),
        ("/health/", b"", True, 401),
    ],
)
def test_internal_key(path: str, header: bytes, is_ready: bool, status: int) -> None:
    async def inner(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204})

    wire = Wire()
    scope = {"type": "http", "path": path, "headers": [(b"authorization", header)]}
    asyncio.run(InternalKey(inner, "key", lambda: is_ready)(scope, wire.receive, wire.send))
    assert wire.sent[0]["status"] == status


class SlowAgent:
    """Hands out a lease after a while, and remembers what became of it."""

    base_id = "base"

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self.out = 0
        self.cancelled = False

    async def acquire(self, name: str) -> Lease:
        try:
            await asyncio.sleep(self._wait_s)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        self.out += 1
        return Lease(name, 1, 1, "/x")

    def release(self, lease: Lease) -> None:
        self.out -= 1


def ask(agent: SlowAgent, *, gone_after_s: float) -> list[Message]:
    async def story() -> list[Message]:
        wire = Wire(part(b'{"model":"ft:a"}'))

        async def receive() -> Message:
            if wire.incoming:
                return await wire.receive()
            await asyncio.sleep(gone_after_s)
            return {"type": "http.disconnect"}

        async def app(_scope: Any, _receive: Any, send: Any) -> None:
            assert agent.out == 1
            await send({"type": "http.response.start", "status": 200, "headers": []})

        admission = AdapterAdmission(app, agent, Traffic(), 1000)
        scope = {"type": "http", "method": "POST", "path": "/v1/completions"}
        async with asyncio.timeout(5):
            await admission(scope, receive, wire.send)
        return wire.sent

    return asyncio.run(story())


def test_a_client_that_leaves_while_it_waits_gives_its_place_up() -> None:
    agent = SlowAgent(wait_s=60)
    assert ask(agent, gone_after_s=0.02) == []
    assert agent.cancelled
    assert agent.out == 0


def test_a_client_that_stays_is_served_and_its_lease_released() -> None:
    agent = SlowAgent(wait_s=0.02)
    assert ask(agent, gone_after_s=60)[0]["status"] == 200
    assert agent.out == 0
