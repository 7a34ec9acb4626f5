"""Models of one base that answer well or badly, for tests of gates and monitors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import msgspec
import openai
from msgspec.structs import replace

from shared import keys
from shared.alias_records import AliasRecord
from shared.records import DEFAULT_PROJECT, Residency
from shared.store.client import Client
from shared.store.gate_runs import GateRunStore
from shared.store.presence import Presence
from shared.store.registry import Registry
from tests.alias_scene import Scene, answered
from tests.api_server import BASE, ApiServer, make_adapter, make_base, make_replica, wait_until, with_store
from tests.batch_requests import Model, prompt_of
from tests.eval_scene import QUESTION, adds, content, make_eval, rows, spoken

GOOD, OTHER, BAD = (f"ft:{BASE}:acme:{name}:{name[0] * 8}" for name in ("good", "other", "bad"))
ROWS = rows(20)


@dataclass
class Models(Model):
    """Each model says `says[model](prompt)`."""

    says: dict[str, Callable[[str], str]] = field(default_factory=dict)

    def _whole(self, request: dict[str, Any]) -> bytes:
        whole = json.loads(spoken(request["model"], self.says[request["model"]](prompt_of(request))))
        choice = whole["choices"][0]
        choice["logprobs"] = choice["message"]["refusal"] = None
        return json.dumps(whole).encode()


@dataclass
class GateScene(Scene):
    """An alias `bot` that points to GOOD; `models` answer for it."""

    models: Models = field(default_factory=Models)
    eval_id: str = ""

    def gate(self, **changes: Any) -> dict[str, Any]:
        """Form a gate of 20 sums, all of which have to be right."""
        source = {"type": "completions", "source": content(ROWS), "input_messages": QUESTION}
        return {
            "eval_id": self.eval_id, "data_source": source, "criteria": {"min_pass_rate": 0.9},
            **changes,
        }  # fmt: skip

    def promote(self, model: str, **fields: Any) -> dict[str, Any]:
        """Promote a model, and return the promotion when it has ended."""
        made = self.http.post("/v1/aliases/bot/promotions", json={"model": model, **fields})
        assert made.status_code == 201, made.text
        return self.ended(made.json()["id"])

    def ended(self, promotion_id: str) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            found = self.shown(path=f"/promotions/{promotion_id}")
            return found if found["status"] in ("completed", "failed", "canceled") else None

        return wait_until(look, timeout_s=30) or {}

    def age(self, hours: float = 1.0) -> None:
        """Have everything that `bot`'s gate goes by lie so much further back."""
        with_store(self.redis_url, lambda client: _age(client, int(hours * 3600)))

    def runs(self) -> list[Any]:
        return list(self.sdk.evals.runs.list(self.eval_id))


@contextmanager
def gate_scene(api: ApiServer, redis_url: str) -> Iterator[GateScene]:
    says = {GOOD: adds, OTHER: adds, BAD: lambda prompt: "no idea"}
    with Models(says=says) as models, api.client() as http:
        with_store(redis_url, lambda client: _furnish(client, models.url))
        sdk = openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0)
        scene = GateScene(api, redis_url, models, models, http, sdk, models=models, eval_id=make_eval(sdk).id)
        answered(http.post("/v1/aliases", json={"name": "bot", "model": GOOD}))
        yield scene


async def _age(client: Client, by: int) -> None:
    raw = await client.call("GET", keys.alias(DEFAULT_PROJECT, "bot"))
    alias = msgspec.json.decode(raw, type=AliasRecord)
    assert alias.gate_set is not None
    for seen in (await GateRunStore(client).all(alias.uid)).values():
        aged = msgspec.json.encode(replace(seen, at=seen.at - by))
        await client.call("HSET", keys.gate_runs(alias.uid), seen.model, aged)
    older = replace(alias, moved_at=alias.moved_at - by, gate_set=replace(alias.gate_set, at=alias.gate_set.at - by))
    await client.call("SET", keys.alias(alias.project, alias.name), msgspec.json.encode(older))


async def _furnish(client: Client, url: str) -> None:
    registry, names = Registry(client), (GOOD, OTHER, BAD)
    await registry.put_base(make_base())
    for place, name in enumerate(names):
        await registry.publish(make_adapter(name, sha256=f"{place}" * 64))
    await Presence(client).beat_replica(make_replica(url, id="only", resident=list(names)), ttl_s=300)
    await registry.acknowledge("only", {name: Residency(state="warm") for name in names})


def usual_client(scene: Scene) -> httpx2.Client:
    """Return a client whose key is no administrator's."""
    return scene.api.client(scene.plain_key()[1])
