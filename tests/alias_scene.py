"""Two models of two bases, each with an inference server of its own, for tests of aliases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import openai

from shared.records import DEFAULT_PROJECT, Residency
from shared.store.client import Client
from shared.store.presence import Presence
from shared.store.registry import Registry
from tests.api_server import BASE, ApiServer, make_adapter, make_base, make_replica, with_store
from tests.fakes.upstream import Upstream

OTHER_BASE = "org/other-base"
V1, V2 = f"ft:{BASE}:acme:bot:AAAAAAAA", f"ft:{OTHER_BASE}:acme:bot:BBBBBBBB"
COLD = f"ft:{BASE}:acme:cold:CCCCCCCC"
FOREIGN = "ft:foreign:acme::DDDDDDDD"
MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]


@dataclass
class Scene:
    """An API, the servers of V1 and V2, and the ways to talk to them."""

    api: ApiServer
    redis_url: str
    first: Upstream
    second: Upstream
    http: httpx2.Client
    sdk: openai.OpenAI

    def alias(self, name: str = "bot", **fields: Any) -> dict[str, Any]:
        """Create an alias of V1, or change what there is, and return it."""
        made = self.http.post("/v1/aliases", json={"name": name, "model": V1})
        return self.change(name, **fields) if fields else answered(made)

    def change(self, name: str = "bot", path: str = "", **fields: Any) -> dict[str, Any]:
        return answered(self.http.post(f"/v1/aliases/{name}{path}", json=fields))

    def shown(self, name: str = "bot", path: str = "", **query: Any) -> dict[str, Any]:
        return answered(self.http.get(f"/v1/aliases/{name}{path}", params=query))

    def refused(self, path: str, method: str = "POST", **fields: Any) -> tuple[int, str | None, str | None, str]:
        """Return status, code, param and message of an answer that is an error."""
        answer = self.http.request(method, path, json=fields or None)
        assert answer.status_code >= 400, answer.text
        error = answer.json()["error"]
        return answer.status_code, error["code"], error["param"], error["message"]

    def ask(self, model: str = "bot", **fields: Any) -> httpx2.Response:
        return self.http.post("/v1/chat/completions", json={"model": model, "messages": MESSAGES, **fields})

    def plain_key(self) -> tuple[str, str]:
        """Make a key that is no administrator's, and return its id and value."""
        made = answered(self.http.post(f"/v1/organization/projects/{DEFAULT_PROJECT}/api_keys", json={"name": "k"}))
        return made["id"], made["value"]

    def allow(self, model: str, *key_ids: str) -> None:
        """Let only these keys use a model."""
        answered(self.http.post(f"/v1/models/{model}/settings", json={"allowed_keys": key_ids}))

    def traffic(self, model: str, name: str = "bot") -> dict[str, Any]:
        """Return the statistics of one model."""
        return next(one for one in self.shown(name, "/traffic")["data"] if one["id"] == model)


def answered(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@contextmanager
def scene(api: ApiServer, redis_url: str) -> Iterator[Scene]:
    """Furnish the API's database: V1 and V2 in memory, COLD not, FOREIGN another project's."""
    with Upstream(pause_s=0.01) as first, Upstream(pause_s=0.01) as second, api.client() as http:
        with_store(redis_url, lambda client: _furnish(client, first.url, second.url))
        sdk = openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0)
        yield Scene(api, redis_url, first, second, http, sdk)


async def _furnish(client: Client, first: str, second: str) -> None:
    registry, presence = Registry(client), Presence(client)
    for base in (BASE, OTHER_BASE):
        await registry.put_base(make_base(base))
    await registry.publish(make_adapter(V1))
    await registry.publish(make_adapter(V2, base=OTHER_BASE, sha256="b" * 64))
    await registry.publish(make_adapter(COLD, sha256="c" * 64))
    await registry.publish(make_adapter(FOREIGN, project="proj_other", sha256="d" * 64))
    await presence.beat_replica(make_replica(first, id="first", resident=[V1]), ttl_s=300)
    await presence.beat_replica(make_replica(second, id="second", base=OTHER_BASE, resident=[V2]), ttl_s=300)
    await registry.acknowledge("first", {V1: Residency(state="warm")})
    await registry.acknowledge("second", {V2: Residency(state="warm")})
