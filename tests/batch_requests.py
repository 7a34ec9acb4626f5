"""Batches for tests: a model that can be slow, busy or stuck, requests for it, and short ways through the SDK."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import openai
from openai.types import Batch

from shared.store.client import Client
from shared.store.presence import Presence
from shared.store.registry import Registry
from tests.api_server import BASE, ApiServer, make_base, make_replica, wait_until, with_store
from tests.fakes.upstream import Upstream

CHAT: Final = "/v1/chat/completions"
ENDED = {"completed", "failed", "expired", "cancelled"}


@dataclass
class Model(Upstream):
    """Answers after `delay_s`; the next answers are `statuses` while there are any; prompts in `stuck` never end."""

    delay_s: float = 0.0
    statuses: list[int] = field(default_factory=list)
    stuck: set[str] = field(default_factory=set)
    at_once: int = 0
    most_at_once: int = 0

    async def _answer(self, request: dict[str, Any], send: Any) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(3600 if prompt_of(request) in self.stuck else self.delay_s)
            if self.statuses:
                await self._refuse(self.statuses.pop(0), send)
            else:
                await super()._answer(request, send)
        finally:
            self.at_once -= 1

    async def _refuse(self, status: int, send: Any) -> None:
        await self._start(send, status, "application/json")
        await send({"type": "http.response.body", "body": b'{"error": {"message": "not now"}}'})

    def asked(self) -> Counter[str]:
        return Counter(prompt_of(json.loads(one.body)) for one in self.received)


def prompt_of(request: dict[str, Any]) -> str:
    return str(request["messages"][0]["content"]) if "messages" in request else ""


def serve(redis_url: str, upstream: Upstream, **replica: Any) -> None:
    async def fill(client: Client) -> None:
        await Registry(client).put_base(make_base())
        await Presence(client).beat_replica(make_replica(upstream.url, **replica), ttl_s=120)

    with_store(redis_url, fill)


def sdk_of(api: ApiServer, key: str | None = None) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=key or api.key, max_retries=0)


def line(number: int, *, url: str = CHAT, **body: Any) -> dict[str, Any]:
    content = {"messages": [{"role": "user", "content": f"prompt {number}"}]} if url == CHAT else {}
    return {"custom_id": f"r{number}", "method": "POST", "url": url, "body": {"model": BASE, **content, **body}}


def upload(sdk: openai.OpenAI, lines: list[Any], *, purpose: Any = "batch") -> str:
    text = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines)
    return sdk.files.create(file=("requests.jsonl", text.encode()), purpose=purpose).id


def start(sdk: openai.OpenAI, lines: list[Any], *, endpoint: Any = CHAT, **options: Any) -> Batch:
    return sdk.batches.create(input_file_id=upload(sdk, lines), endpoint=endpoint, completion_window="24h", **options)


class Named(Protocol):
    @property
    def id(self) -> str: ...


def until(sdk: openai.OpenAI, batch: Named, condition: Callable[[Batch], bool], *, timeout_s: float = 20) -> Batch:
    """Look the batch up until `condition` holds."""

    def look() -> Batch | None:
        found = sdk.batches.retrieve(batch.id)
        return found if condition(found) else None

    found = wait_until(look, timeout_s=timeout_s)
    assert found is not None
    return found


def ended(sdk: openai.OpenAI, batch: Named, *, timeout_s: float = 20) -> Batch:
    return until(sdk, batch, lambda found: found.status in ENDED, timeout_s=timeout_s)


def content(sdk: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(text) for text in sdk.files.content(file_id).text.splitlines()]


def completed(batch: Batch) -> int:
    assert batch.request_counts is not None
    return batch.request_counts.completed
