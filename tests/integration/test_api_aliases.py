"""Aliases through the API: the resource, its history, moves by many writers, and names that are refused."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import httpx2
import openai
import pytest

from services.api.aliases.warming import Warming
from shared.errors import AdapterRejected, Conflict
from shared.placement import owners
from shared.records import Residency
from shared.store.client import Client
from shared.store.presence import Presence
from shared.store.registry import Registry
from tests.alias_scene import COLD, FOREIGN, MESSAGES, OTHER_BASE, V1, V2, Scene, answered, scene
from tests.api_server import BASE, ApiServer, know_key, make_adapter, make_base, make_replica, with_store

OTHERS_KEY = "sk-others"


@pytest.fixture
def bots(api: ApiServer, redis_url: str) -> Iterator[Scene]:
    with scene(api, redis_url) as found:
        yield found


def test_life_of_an_alias(bots: Scene) -> None:
    made = answered(bots.http.post("/v1/aliases", json={"name": "bot", "model": V1, "description": "support"}))
    assert made == {
        "id": "bot", "object": "alias", "created_at": made["created_at"], "updated_at": made["created_at"],
        "revision": 1, "model": V1, "previous_model": None, "description": "support", "canary": None, "shadow": None,
        "watch": None, "gate": None, "monitor": None, "warm": True, "warning": None,
    }  # fmt: skip
    shown = bots.shown()
    assert shown == {name: value for name, value in made.items() if name not in ("warm", "warning")}
    moved = bots.change(model=V2, reason="better")
    assert (moved["model"], moved["previous_model"], moved["revision"]) == (V2, V1, 2)
    assert bots.change(model=V2)["revision"] == 2, "what is there already is no change"
    entries = bots.shown(path="/history")["data"]
    assert [(one["revision"], one["action"], one["previous_model"], one["model"]) for one in entries] == [
        (2, "moved", V1, V2), (1, "created", None, V1),
    ]  # fmt: skip
    assert (entries[0]["reason"], entries[0]["key_name"], entries[0]["automatic"]) == ("better", "test", False)
    assert entries[0]["key_id"].startswith("key_")
    assert answered(bots.http.delete("/v1/aliases/bot")) == {"id": "bot", "object": "alias.deleted", "deleted": True}
    assert bots.refused("/v1/aliases/bot", "GET")[:3] == (404, "alias_not_found", "alias")
    assert bots.ask().status_code == 404
    assert bots.alias()["revision"] == 1 and len(bots.shown(path="/history")["data"]) == 1, "a new one begins anew"


def test_lists_are_paged(bots: Scene) -> None:
    for name in ("a", "b", "c"):
        bots.alias(name)
    pages = [answered(bots.http.get("/v1/aliases", params={"limit": 2}))]
    pages.append(answered(bots.http.get("/v1/aliases", params={"limit": 2, "after": pages[0]["last_id"]})))
    assert [[one["id"] for one in page["data"]] for page in pages] == [["c", "b"], ["a"]]
    assert [page["has_more"] for page in pages] == [True, False]
    for number in range(3):
        bots.change("a", description=str(number))
    page = bots.shown("a", "/history", limit=2)
    assert [one["id"] for one in page["data"]] == ["4", "3"] and page["has_more"]
    assert [one["id"] for one in bots.shown("a", "/history", after="3")["data"]] == ["2", "1"]
    assert bots.refused("/v1/aliases/a/history?after=9", "GET")[:3] == (404, None, "after")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("ft:bot", "invalid_alias_name"), ("..", "invalid_alias_name"), ("a/b", "invalid_alias_name"),
        ("a:b", "invalid_alias_name"), (".hidden", "invalid_alias_name"), ("a b", "invalid_alias_name"),
        ("a\n", "invalid_alias_name"), ("", "invalid_value"), ("a" * 129, "invalid_value"), ("plain", "name_taken"),
    ],
)  # fmt: skip
def test_names_that_no_alias_may_have(bots: Scene, name: str, code: str) -> None:
    with_store(bots.redis_url, lambda client: Registry(client).put_base(make_base("plain")))
    assert bots.refused("/v1/aliases", name=name, model=V1)[:3] == (400, code, "name")
    assert bots.shown("", "")["data"] == []


@pytest.mark.parametrize("model", ["ft:nobody", FOREIGN, "bot", ""])
def test_models_that_no_alias_may_name(bots: Scene, model: str) -> None:
    bots.alias()
    status, code, param, _ = bots.refused("/v1/aliases", name="second", model=model)
    assert (status, code, param) == ((404, "model_not_found", "model") if model else (400, "invalid_value", "model"))
    if model:
        canary = {"model": model, "percent": 5}
        assert bots.refused("/v1/aliases/bot", canary=canary)[:3] == (404, "model_not_found", "canary.model")
        assert bots.refused("/v1/aliases/bot", shadow=canary)[:3] == (404, "model_not_found", "shadow.model")


def test_no_alias_names_a_reward_model(bots: Scene, redis_url: str) -> None:
    scores = f"ft:{BASE}:acme:scores:EEEEEEEE"
    reward_model = make_adapter(scores, kind="reward", sha256="e" * 64)
    with_store(redis_url, lambda client: Registry(client).publish(reward_model))
    before = bots.alias()
    refused = [
        bots.refused("/v1/aliases", name="second", model=scores),
        bots.refused("/v1/aliases/bot", model=scores),
        bots.refused("/v1/aliases/bot", canary={"model": scores, "percent": 5}),
        bots.refused("/v1/aliases/bot", shadow={"model": scores, "percent": 5}),
    ]
    assert [one[:3] for one in refused] == [
        (400, "reward_model", param) for param in ("model", "model", "canary.model", "shadow.model")
    ]
    assert f"'{scores}' is a reward model" in refused[0][3]
    assert bots.shown()["revision"] == before["revision"]


def test_requests_that_make_no_sense_are_refused(bots: Scene) -> None:
    bots.alias()
    assert bots.refused("/v1/aliases", name="bot", model=V1)[:3] == (400, "alias_exists", "name")
    same = {"model": V1, "percent": 5}
    assert bots.refused("/v1/aliases/bot", canary=same)[:3] == (400, "invalid_value", "canary.model")
    assert bots.refused("/v1/aliases/bot", shadow=same)[:3] == (400, "invalid_value", "shadow.model")
    for percent in (0, 100, -1):
        wrong = {"model": V2, "percent": percent}
        assert bots.refused("/v1/aliases/bot", canary=wrong)[:3] == (400, "invalid_value", "canary.percent")
    empty = {"model": V2, "percent": 5, "limits": {"min_requests": 5}}
    assert bots.refused("/v1/aliases/bot", canary=empty)[:3] == (400, "invalid_value", "canary.limits")
    assert bots.refused("/v1/aliases/bot", watch={"limits": {}})[:3] == (400, "invalid_value", "watch.limits")
    assert bots.refused("/v1/aliases/bot/promote")[:3] == (400, "no_canary", "alias")
    assert bots.refused("/v1/aliases/bot/rollback")[:3] == (400, "nothing_to_roll_back", None)
    assert bots.refused("/v1/aliases/bot/rollback", revision=9)[:3] == (400, "unknown_revision", "revision")
    assert bots.refused("/v1/aliases/bot/rollback", revision=1)[:3] == (400, "nothing_to_roll_back", "revision")
    for path in ("", "/promote", "/rollback"):
        assert bots.refused(f"/v1/aliases/none{path}", reason="x")[0] == 404
        assert bots.refused(f"/v1/aliases/bot{path}", expected_revision=7)[:3] == (
            400, "alias_moved", "expected_revision",
        )  # fmt: skip
    assert bots.shown()["revision"] == 1


def test_another_project_sees_and_uses_nothing_of_it(bots: Scene) -> None:
    bots.alias()
    know_key(bots.redis_url, OTHERS_KEY, project="proj_other")
    with bots.api.client(OTHERS_KEY) as others:
        assert others.get("/v1/aliases").json()["data"] == []
        for method, path in (("GET", ""), ("POST", ""), ("DELETE", ""), ("GET", "/history"), ("GET", "/shadow_pairs")):
            assert others.request(method, f"/v1/aliases/bot{path}", json={}).status_code == 404
        assert others.post("/v1/chat/completions", json={"model": "bot", "messages": MESSAGES}).status_code == 404
        assert {model["id"] for model in others.get("/v1/models").json()["data"]} == {BASE, OTHER_BASE, FOREIGN}
        own = others.post("/v1/aliases", json={"name": "bot", "model": BASE})
        assert own.status_code == 200, "each project has its own names"
    assert bots.shown()["model"] == V1


def test_rollback_goes_to_the_model_before_or_to_a_revision(bots: Scene) -> None:
    bots.alias()
    bots.change(model=V2)
    bots.change(model=BASE, canary={"model": V2, "percent": 5})
    back = bots.change(path="/rollback", reason="wrong answers")
    assert (back["model"], back["previous_model"], back["canary"], back["revision"]) == (V2, BASE, None, 4)
    assert bots.change(path="/rollback")["model"] == BASE, "a second one takes the first back"
    assert bots.change(path="/rollback", revision=1, expected_revision=5)["model"] == V1
    assert [one["action"] for one in bots.shown(path="/history")["data"]][:3] == ["rolled_back"] * 3
    assert bots.shown(path="/history")["data"][2]["reason"] == "wrong answers"


def test_of_fifty_writers_who_expect_the_same_revision_one_wins(bots: Scene) -> None:
    bots.alias()

    async def race(revision: int) -> list[httpx2.Response]:
        headers = {"authorization": f"Bearer {bots.api.key}"}
        async with httpx2.AsyncClient(base_url=bots.api.url, headers=headers, trust_env=False, timeout=60) as http:

            async def write(number: int) -> httpx2.Response:
                body = {"description": f"{revision}/{number}", "expected_revision": revision}
                return await http.post("/v1/aliases/bot", json=body)

            return await asyncio.gather(*(write(number) for number in range(50)))

    for revision in (1, 2, 3):
        answers = asyncio.run(race(revision))
        winners = [answer.json() for answer in answers if answer.status_code == 200]
        assert [winner["revision"] for winner in winners] == [revision + 1]
        losers = [answer.json()["error"] for answer in answers if answer.status_code != 200]
        assert {loser["code"] for loser in losers} == {"alias_moved"} and len(losers) == 49
        assert f"at revision {revision + 1}, not {revision}" in losers[0]["message"]
        assert bots.shown()["description"] == winners[0]["description"]


def test_writers_who_expect_nothing_all_come_through(bots: Scene) -> None:
    bots.alias()

    def write(number: int) -> None:
        with bots.api.client() as http:
            assert http.post("/v1/aliases/bot", json={"description": str(number)}).status_code == 200

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = bots.shown(path="/history")["data"]
    assert [one["revision"] for one in entries] == list(range(9, 0, -1))


def test_the_history_is_bounded(bots: Scene) -> None:
    bots.alias()
    for number in range(210):
        bots.change(description=str(number))
    pages = [bots.shown(path="/history", limit=100)]
    pages.append(bots.shown(path="/history", limit=100, after=pages[0]["last_id"]))
    assert [len(page["data"]) for page in pages] == [100, 100] and not pages[1]["has_more"]


def test_an_alias_is_listed_as_a_model_and_deleted_as_an_alias(bots: Scene) -> None:
    bots.alias()
    assert {model.id for model in bots.sdk.models.list()} == {BASE, OTHER_BASE, V1, V2, COLD, "bot"}
    shown = bots.sdk.models.retrieve("bot")
    assert (shown.id, shown.owned_by) == ("bot", "acme")
    with pytest.raises(openai.BadRequestError, match="delete it at /v1/aliases/bot") as caught:
        bots.sdk.models.delete("bot")
    assert caught.value.code == "model_alias"


def test_a_model_that_answers_for_an_alias_is_not_deleted(bots: Scene) -> None:
    bots.alias(canary={"model": V2, "percent": 5})
    for model in (V1, V2):
        with pytest.raises(openai.BadRequestError, match="answers for the alias 'bot'") as caught:
            bots.sdk.models.delete(model)
        assert caught.value.code == "model_in_use"
    bots.change(canary=None)
    assert bots.sdk.models.delete(V2).deleted


def test_an_alias_of_a_model_that_is_gone_says_so(bots: Scene) -> None:
    bots.alias()
    with_store(bots.redis_url, lambda client: Registry(client).retire(V1))
    with pytest.raises(openai.NotFoundError) as caught:
        bots.sdk.chat.completions.create(model="bot", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    assert f"alias 'bot' points to the model '{V1}', which does not exist any more" in caught.value.message
    bots.change(model=V2)
    assert bots.ask().json()["model"] == V2


def test_a_model_that_is_for_some_keys_only_is_warned_of_and_hidden_from_others(bots: Scene) -> None:
    key_id, key = bots.plain_key()
    bots.alias()
    bots.allow(V2)
    warnings = [bots.change(canary={"model": V2, "percent": 5})["warning"], bots.change(path="/promote")["warning"]]
    assert all(f"Not every API key that may use '{V1}' may use '{V2}'" in warning for warning in warnings)
    assert bots.change(description="a bot")["warning"] is None
    with bots.api.client(key) as other:
        asked = other.post("/v1/chat/completions", json={"model": "bot", "messages": MESSAGES})
        looked = other.get("/v1/models/bot/settings")
        for refused in (asked, looked):
            message = refused.json()["error"]["message"]
            assert (refused.status_code, message) == (
                404, "The model 'bot' does not exist or you do not have access to it.",
            )  # fmt: skip
        assert "bot" not in {model["id"] for model in other.get("/v1/models").json()["data"]}
        bots.allow(V2, key_id)
        assert other.post("/v1/chat/completions", json={"model": "bot", "messages": MESSAGES}).status_code == 200
    assert bots.change(path="/rollback")["warning"] is None


def test_settings_are_those_of_the_model_that_an_alias_points_to(bots: Scene) -> None:
    bots.alias()
    for method in ("GET", "POST"):
        status, code, param, message = bots.refused("/v1/models/bot/settings", method, temperature=0)
        assert (status, code, param) == (400, "model_alias", "model") and V1 in message


def test_the_shadows_of_a_project_keep_so_many_pairs_together(bots: Scene) -> None:
    most = {"model": V2, "percent": 5, "keep_pairs": 1000}
    for name in ("a", "b"):
        bots.alias(name, shadow=most)
    bots.alias("c")
    assert bots.refused("/v1/aliases/c", shadow=most)[:3] == (400, "too_many_pairs", "shadow.keep_pairs")
    bots.change("a", shadow=most | {"percent": 6})
    bots.change("a", shadow=None)
    bots.change("c", shadow=most)


def test_a_model_of_the_same_name_comes_before_the_alias(bots: Scene) -> None:
    bots.alias()

    async def overshadow(client: Client) -> None:
        await Registry(client).put_base(make_base("bot"))
        await Presence(client).beat_replica(make_replica(bots.second.url, id="third", base="bot"), ttl_s=60)

    with_store(bots.redis_url, overshadow)
    assert bots.ask().headers["x-selftune-model"] == "bot"


def _warmed(bots: Scene, model: str, *, wait_s: float, wait: bool = True, base: bool = False) -> bool:
    async def story(client: Client) -> bool:
        registry = Registry(client)
        record = await (registry.base(model) if base else registry.get(model))
        assert record is not None
        return await Warming(registry, Presence(client), wait_s=wait_s).warm(record, param="model", wait=wait)

    return with_store(bots.redis_url, story)


def _say(bots: Scene, residency: Residency) -> None:
    with_store(bots.redis_url, lambda client: Registry(client).acknowledge("first", {COLD: residency}))


def test_a_move_waits_until_a_server_has_the_model(bots: Scene) -> None:
    bots.alias()
    later = threading.Timer(0.6, lambda: _say(bots, Residency(state="warm")))
    later.start()
    started = time.monotonic()
    moved = bots.change(model=COLD)
    assert (moved["warm"], moved["model"]) == (True, COLD) and time.monotonic() - started > 0.5
    later.join()
    changes = with_store(bots.redis_url, lambda client: Registry(client).changes("0-0", block_ms=10))[1]
    assert (changes[-1].name, changes[-1].action) == (COLD, "wanted"), "the server was asked"


def test_a_move_need_not_wait(bots: Scene) -> None:
    bots.alias()
    assert bots.change(model=COLD, wait_warm=False)["warm"] is False
    assert bots.change(model=BASE)["warm"] is True, "a base is at hand where its server is"
    with_store(bots.redis_url, lambda client: Presence(client).forget_replica("first"))
    assert bots.change(model=COLD)["warm"] is False, "nobody is there to wait for"


def test_a_model_that_the_servers_refuse_is_not_pointed_to(bots: Scene) -> None:
    bots.alias()
    later = threading.Timer(0.3, lambda: _say(bots, Residency(state="failed", reason="rank 999 is too large")))
    later.start()
    status, code, param, message = bots.refused("/v1/aliases/bot", model=COLD)
    later.join()
    assert (status, code, param) == (400, "adapter_failed", "model") and "rank 999 is too large" in message
    assert bots.shown()["model"] == V1


def test_only_the_servers_that_a_model_belongs_to_can_refuse_it(bots: Scene) -> None:
    async def story(client: Client) -> None:
        registry, presence = Registry(client), Presence(client)
        for number in range(2):
            await presence.beat_replica(make_replica(f"http://{number}", id=f"other-{number}"), ttl_s=60)
        await presence.beat_replica(make_replica("http://m", id="merged", merged=V1), ttl_s=60)
        sharing = [one for one in await presence.replicas() if one.base == BASE and not one.merged]
        first, second = owners(sharing, COLD)
        stranger = next(one for one in sharing if one not in (first, second))
        cold = await registry.get(COLD)
        assert cold is not None
        await registry.acknowledge(stranger.id, {COLD: Residency(state="failed", reason="not its own")})
        await registry.acknowledge(first.id, {COLD: Residency(state="quarantined", reason="damaged")})
        with pytest.raises(Conflict):
            await Warming(registry, presence, wait_s=2.3).warm(cold, param="model", wait=True)
        await registry.acknowledge(second.id, {COLD: Residency(state="failed", reason="damaged")})
        with pytest.raises(AdapterRejected, match="damaged"):
            await Warming(registry, presence, wait_s=5).warm(cold, param="model", wait=True)
        await presence.beat_replica(make_replica("http://n", id="merged", merged=COLD), ttl_s=60)
        assert await Warming(registry, presence).warm(cold, param="model", wait=False)

    with_store(bots.redis_url, story)


def test_waiting_ends(bots: Scene) -> None:
    with pytest.raises(Conflict) as caught:
        _warmed(bots, COLD, wait_s=0.3)
    assert caught.value.code == "model_not_warm"
    _say(bots, Residency(state="failed", reason="earlier"))
    with pytest.raises(AdapterRejected, match="earlier"):
        _warmed(bots, COLD, wait_s=5)
    assert _warmed(bots, V1, wait_s=0.3) and _warmed(bots, BASE, wait_s=0.3, base=True)
