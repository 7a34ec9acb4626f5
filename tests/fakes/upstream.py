"""An inference server's wire without a model: statuses, headers and server-sent events as vLLM's server sends them.

It stands in where a test is about the gateway: cut connections, odd errors, disconnects, which a real engine does not
produce on demand. The real engine behind the gateway is exercised by the end-to-end test.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import uvicorn

from tests.api_server import free_port

Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass
class Received:
    """A request as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes
    """Without the salt that the gateway puts behind everything else."""
    salt: str = ""


@dataclass
class Upstream:
    """`behaviour` says how the next requests end: whole, cut, hang, …, or `status` with `error` as its body."""

    port: int = field(default_factory=free_port)
    behaviour: str = "whole"
    status: int = 200
    error: bytes = b""
    error_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    answer: bytes = b""
    """Body of whole answers, instead of a chat completion."""
    events: list[bytes] = field(default_factory=list)
    """Pieces of streams, instead of a chat completion's."""
    pause_s: float = 0.2
    """Between two pieces of a stream."""
    received: list[Received] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    """Set when a client went away before its answer was whole."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        config = uvicorn.Config(self, host="127.0.0.1", port=self.port, log_config=None, lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            threading.Event().wait(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(timeout=20)

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        head, _, salt = (await _body(receive)).partition(b',"cache_salt":')
        body = head + b"}" if salt else head
        self.received.append(Received(scope["path"], headers, body, salt.decode().strip('"}')))
        if not body:  # the gateway's client left before the gateway had sent it
            return
        answering = asyncio.create_task(self._answer(json.loads(self.received[-1].body), send))
        leaving = asyncio.create_task(_disconnected(receive))
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            self.left.set()
        answering.cancel()
        leaving.cancel()

    async def _answer(self, request: dict[str, Any], send: Send) -> None:
        if self.error:
            await self._start(send, self.status, self.error_type)
            await send({"type": "http.response.body", "body": self.error})
        elif self.behaviour == "silent":
            await asyncio.sleep(3600)
        elif request.get("stream"):
            self.events = [_echoed(event, request) for event in self.events]
            await self._stream(request["model"], send)
        else:
            await self._start(send, self.status, "application/json")
            whole = self._whole(request)
            if self.behaviour == "cut":
                await send({"type": "http.response.body", "body": whole[:20], "more_body": True})
                return
            await send({"type": "http.response.body", "body": whole})

    def _whole(self, request: dict[str, Any]) -> bytes:
        """Form the body of an answer that is no stream."""
        return _echoed(self.answer, request) or json.dumps(_completion(request["model"])).encode()

    async def _stream(self, model: str, send: Send) -> None:
        await self._start(send, 200, "text/event-stream; charset=utf-8")
        if self.behaviour == "cut before the first event":
            return
        for event in self.events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        if self.events:
            await send({"type": "http.response.body", "body": b""})
            return
        for piece in ("Hel", "lo", "!"):
            event = b"data: " + json.dumps(_chunk(model, piece)).encode() + b"\n\n"
            if self.behaviour == "cut inside an event":
                event = event[:20]
            await send({"type": "http.response.body", "body": event, "more_body": True})
            if self.behaviour == "hang":
                await asyncio.sleep(3600)
            if self.behaviour.startswith("cut"):
                return  # uvicorn closes the connection, since the body is not at its end
            await asyncio.sleep(self.pause_s)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _start(self, send: Send, status: int, kind: str) -> None:
        headers = [(b"content-type", kind.encode())]
        headers += [(name.encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": headers})


def _echoed(answer: bytes, request: dict[str, Any]) -> bytes:
    """Put the id in that the request asks for, as vLLM does with responses."""
    return answer.replace(b"resp_upstream", str(request.get("request_id")).encode())


async def _body(receive: Callable[[], Awaitable[Any]]) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _completion(model: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": "Hello!"}
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": model,
        "choices": [{"index": 0, "finish_reason": "stop", "message": message, "text": "Hello!"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }  # fmt: skip


def _chunk(model: str, piece: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": model,
        "choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}],
    }  # fmt: skip
