"""Where models are in memory, over HTTP: what servers tell, brought together."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from shared.placement import owners
from shared.records import ReplicaRecord, Residency
from shared.store.client import Client
from shared.store.presence import Presence
from shared.store.registry import Registry
from tests.api_server import BASE, ApiServer, make_adapter, make_base, with_store

MINE = f"ft:{BASE}:acme:style:AbCdEfGh"
THEIRS = f"ft:{BASE}:acme:theirs:ZyXwVuTs"


def replica(name: str, **fields: Any) -> ReplicaRecord:
    return ReplicaRecord(**({"id": name, "url": f"http://{name}", "base": BASE, "state": "ready"} | fields))


@pytest.fixture
def models(api: ApiServer, redis_url: str) -> ApiServer:
    async def fill(client: Client) -> None:
        registry = Registry(client)
        await registry.put_base(make_base())
        await registry.publish(make_adapter(MINE, sha256="a" * 64))
        await registry.publish(make_adapter(THEIRS, project="proj_other", sha256="c" * 64))

    with_store(redis_url, fill)
    return api


def stand(redis_url: str, replicas: list[ReplicaRecord], **told: Residency) -> None:
    async def write(client: Client) -> None:
        for record in replicas:
            await Presence(client).beat_replica(record, ttl_s=60)
        for name, residency in told.items():
            await Registry(client).acknowledge(name, {MINE: residency})

    with_store(redis_url, write)


def look(api: ApiServer, model: str = MINE) -> httpx2.Response:
    with api.client() as http:
        return http.get(f"/v1/models/{model}/residency")


def test_every_server_of_the_base_is_told_about(models: ApiServer, redis_url: str) -> None:
    alive = [
        replica("a", resident=[MINE], running=3),
        replica("b"),
        replica("c"),
        replica("d", state="starting"),
        replica("e", base="another"),
        replica("f", merged=THEIRS),
    ]
    stand(
        redis_url, alive,
        a=Residency(state="warm", load_ms=12.5), b=Residency(state="quarantined", reason="its bytes are damaged"),
        c=Residency(state="warm", load_ms=1.0),  # it has gone from memory since
    )  # fmt: skip
    found = look(models).json()
    by_id = {one["replica"]: one for one in found["replicas"]}
    assert (found["model"], found["base"], found["warm"], found["pinned"]) == (MINE, BASE, 1, False)
    assert {name: one["state"] for name, one in by_id.items()} == {
        "a": "warm", "b": "quarantined", "c": "staged", "d": "staged",
    }  # fmt: skip
    assert (by_id["a"]["load_ms"], by_id["a"]["running"]) == (12.5, 3)
    assert by_id["b"]["reason"] == "its bytes are damaged"
    assert by_id["c"]["load_ms"] is None
    own = {one.id for one in owners(alive[:3], MINE)}
    assert {name for name, one in by_id.items() if one["owner"]} == own


def test_servers_that_take_no_part_own_nothing(models: ApiServer, redis_url: str) -> None:
    alive = [replica("a"), replica("b"), replica("silent", url=""), replica("mine", merged=MINE, resident=[MINE])]
    alive.append(replica("starting", state="starting"))
    stand(redis_url, alive)
    found = {one["replica"]: one["owner"] for one in look(models).json()["replicas"]}
    assert found == {"a": True, "b": True, "silent": False, "mine": True, "starting": False}


def test_a_base_is_warm_where_it_is_served(models: ApiServer, redis_url: str) -> None:
    stand(redis_url, [replica("a"), replica("b", state="starting")])
    assert [(one["replica"], one["state"]) for one in look(models, BASE).json()["replicas"]] == [
        ("a", "warm"), ("b", "staged"),
    ]  # fmt: skip


def test_asking_for_a_model_tells_the_servers(models: ApiServer, redis_url: str) -> None:
    async def changes(client: Client) -> list[tuple[str, str]]:
        _, found = await Registry(client).changes("0-0", block_ms=1)
        return [(change.name, change.action) for change in found]

    with models.client() as http:
        answer = http.post(f"/v1/models/{MINE}/residency", json={"state": "warm"})
        assert answer.json()["object"] == "model.residency"
        assert with_store(redis_url, changes)[-1] == (MINE, "wanted")
        for body, param in (({"state": "cold"}, "state"), ({}, "state"), ({"state": "warm", "x": 1}, "x")):
            refused = http.post(f"/v1/models/{MINE}/residency", json=body)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
        base = http.post(f"/v1/models/{BASE}/residency", json={"state": "warm"})
        assert (base.status_code, base.json()["error"]["code"]) == (400, "base_model")


@pytest.mark.parametrize("model", [THEIRS, "ft:nothing:a:b:c", "../../etc/passwd"])
def test_foreign_and_unknown_models_are_not_found(models: ApiServer, model: str) -> None:
    assert look(models, model).status_code == 404
    with models.client() as http:
        assert http.post(f"/v1/models/{model}/residency", json={"state": "warm"}).status_code == 404
