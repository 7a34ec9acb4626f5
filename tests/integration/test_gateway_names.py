"""The gateway's view of a request: aliases, priority, the endpoint that a base cannot answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from shared.alias_records import AliasRecord
from shared.schemas.aliases import AliasRevision
from shared.store.aliases import AliasStore
from shared.store.client import Client
from shared.store.presence import Presence
from shared.store.registry import Registry
from tests.api_server import BASE, ApiServer, know_key, make_adapter, make_base, make_replica, with_store
from tests.fakes.upstream import Upstream

MINE = f"ft:{BASE}:acme:style:AbCdEfGh"
ALIASES = {"gpt-4o-mini": MINE, "gpt-base": BASE, "gpt-lost": "ft:gone", "gpt-twice": "gpt-4o-mini"}
MESSAGES = [{"role": "user", "content": "hi"}]
FOREIGN = "sk-foreign"


@pytest.fixture(scope="module")
def aliased(valkey_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    url = f"unix://{valkey_folder / 'valkey.sock'}"
    server = ApiServer(tmp_path_factory.mktemp("aliased"), url, model_aliases=ALIASES, organization="acme")
    yield server
    server.stop()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@pytest.fixture
def sdk(aliased: ApiServer, redis_url: str, upstream: Upstream, specification: None) -> openai.OpenAI:
    async def fill(client: Client) -> None:
        registry = Registry(client)
        await registry.put_base(make_base())
        await registry.publish(make_adapter(MINE))
        await Presence(client).beat_replica(make_replica(upstream.url), ttl_s=60)

    know_key(redis_url, aliased.key)
    know_key(redis_url, FOREIGN, project="proj_other")
    with_store(redis_url, fill)
    return openai.OpenAI(base_url=f"{aliased.url}/v1", api_key=aliased.key, max_retries=0)


def test_only_the_alias_changes_in_the_body(sdk: openai.OpenAI, aliased: ApiServer, upstream: Upstream) -> None:
    body = b'{ "messages":[{"role":"user", "content":"\xc3\xbc\\u0041"}],"model" : "gpt-4o-mini", "odd":[1.0, 1e2] }'
    with aliased.client() as http:
        answer = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    (received,) = upstream.received
    sent = b'{"messages":[{"role":"user", "content":"\xc3\xbc\\u0041"}],"model":"%s","odd":[1.0, 1e2]}'
    assert received.body == sent % MINE.encode()


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("completions", {"prompt": "x"}),
        ("chat/completions", {"messages": MESSAGES}),
        ("messages", {"messages": MESSAGES}),
        ("responses", {"input": "x"}),
    ],
)
def test_an_alias_of_a_base_answers_everywhere(
    sdk: openai.OpenAI, aliased: ApiServer, upstream: Upstream, path: str, fields: dict[str, Any]
) -> None:
    with aliased.client() as http:
        assert http.post(f"/v1/{path}", json={"model": "gpt-base", **fields}).status_code == 200
    assert f'"model":"{BASE}"'.encode() in upstream.received[0].body


@pytest.mark.parametrize("name", ["GPT-4o-mini", "gpt-lost", "gpt-twice", "gpt"])
def test_a_name_that_leads_nowhere_is_404_under_that_name(sdk: openai.OpenAI, upstream: Upstream, name: str) -> None:
    with pytest.raises(openai.NotFoundError, match=f"'{name}'") as caught:
        sdk.chat.completions.create(model=name, messages=MESSAGES)  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError, match=f"'{name}'"):
        sdk.models.retrieve(name)
    assert upstream.received == []


def test_aliases_are_listed_as_models_of_their_targets_owner(sdk: openai.OpenAI) -> None:
    owners = {model.id: model.owned_by for model in sdk.models.list()}
    assert owners == {BASE: "system", MINE: "acme", "gpt-4o-mini": "acme", "gpt-base": "system"}
    shown = sdk.models.retrieve("gpt-4o-mini")
    assert (shown.id, shown.owned_by, shown.created) == ("gpt-4o-mini", "acme", sdk.models.retrieve(MINE).created)


def test_an_alias_is_not_deleted_and_neither_is_its_model(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="alias") as caught:
        sdk.models.delete("gpt-4o-mini")
    assert (caught.value.code, caught.value.param) == ("model_alias", "model")
    assert sdk.models.retrieve(MINE).id == MINE


def test_an_alias_shows_no_other_projects_model(sdk: openai.OpenAI, aliased: ApiServer) -> None:
    foreign = openai.OpenAI(base_url=f"{aliased.url}/v1", api_key=FOREIGN, max_retries=0)
    assert {model.id for model in foreign.models.list()} == {BASE, "gpt-base"}
    with pytest.raises(openai.NotFoundError):
        foreign.completions.create(model="gpt-4o-mini", prompt="x")
    with pytest.raises(openai.NotFoundError) as caught:
        foreign.models.delete("gpt-4o-mini")
    assert MINE not in caught.value.message


def test_a_name_that_means_nothing_to_a_key_is_not_listed_for_something_else(
    sdk: openai.OpenAI, aliased: ApiServer, redis_url: str
) -> None:
    record = AliasRecord(
        uid="alias_1", name="gpt-4o-mini", project="proj_other", target=BASE, created_at=1, updated_at=1
    )
    entry = AliasRevision(id="1", revision=1, created_at=1, action="created", model=BASE)

    async def overlay(client: Client) -> None:
        await AliasStore(client).create(record, entry)
        await Registry(client).put_base(make_base("gpt-lost"))

    with_store(redis_url, overlay)
    foreign = openai.OpenAI(base_url=f"{aliased.url}/v1", api_key=FOREIGN, max_retries=0)
    assert {model.id for model in foreign.models.list()} == {BASE, "gpt-base"}
    for name in ("gpt-4o-mini", "gpt-lost"):
        with pytest.raises(openai.NotFoundError):
            foreign.models.retrieve(name)


@pytest.mark.parametrize(("given", "sent"), [({}, "0"), ({"priority": 7}, "7"), ({"priority": -5}, "0")])
def test_a_client_may_wait_longer_but_not_overtake(
    sdk: openai.OpenAI, upstream: Upstream, given: dict[str, int], sent: str
) -> None:
    sdk.completions.create(model=BASE, prompt="x", extra_body=given)
    assert upstream.received[0].headers["x-vllm-priority"] == sent


@pytest.mark.parametrize("priority", ["1", 1.5, [1]])
def test_a_priority_that_is_no_number_is_400(sdk: openai.OpenAI, priority: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.completions.create(model=BASE, prompt="x", extra_body={"priority": priority})
    assert caught.value.param == "priority"


def test_an_endpoint_that_the_base_cannot_answer_is_400(sdk: openai.OpenAI, redis_url: str, upstream: Upstream) -> None:
    with pytest.raises(openai.BadRequestError, match="cannot make embeddings") as caught:
        sdk.embeddings.create(model="gpt-4o-mini", input="x")
    assert caught.value.code == "unsupported_endpoint"
    embedder = make_replica(upstream.url, tasks=("embed",))
    with_store(redis_url, lambda client: Presence(client).beat_replica(embedder, ttl_s=60))
    upstream.answer = b'{"object":"list","model":"m","data":[{"object":"embedding","index":0,"embedding":[0.5]}],'
    upstream.answer += b'"usage":{"prompt_tokens":1,"total_tokens":1}}'
    assert sdk.embeddings.create(model=BASE, input="x", encoding_format="float").data[0].embedding == [0.5]
    with pytest.raises(openai.BadRequestError, match="cannot generate text"):
        sdk.completions.create(model=BASE, prompt="x")


@pytest.mark.parametrize(
    ("body", "headers", "status", "kind"),
    [
        ({"model": "nope"}, {}, 404, "not_found_error"),
        ({"model": 5}, {}, 400, "invalid_request_error"),
        ({"model": BASE}, {"x-api-key": "sk-wrong", "authorization": ""}, 401, "authentication_error"),
        ({"model": BASE}, {"authorization": ""}, 401, "authentication_error"),
        ({"model": BASE}, {"content-type": "text/plain"}, 415, "invalid_request_error"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_errors_of_messages_are_anthropics(
    sdk: openai.OpenAI,
    aliased: ApiServer,
    path: str,
    body: dict[str, Any],
    headers: dict[str, str],
    status: int,
    kind: str,
) -> None:
    with aliased.client() as http:
        answer = http.post(path, json=body, headers=headers)
    assert answer.status_code == status
    shown = answer.json()
    assert (shown["type"], shown["error"]["type"]) == ("error", kind)
    assert shown["error"]["message"]


def test_upstream_errors_of_messages_are_anthropics(sdk: openai.OpenAI, aliased: ApiServer, upstream: Upstream) -> None:
    upstream.status, upstream.error = 503, b'{"error": {"message": "busy", "type": "x", "code": 503}}'
    with aliased.client(key="") as http:
        answer = http.post("/v1/messages", json={"model": BASE}, headers={"x-api-key": aliased.key})
    assert (answer.status_code, answer.json()["error"]) == (503, {"type": "overloaded_error", "message": "busy"})
    assert answer.headers["retry-after"]


def test_the_other_key_header_is_for_messages_alone(sdk: openai.OpenAI, aliased: ApiServer) -> None:
    with aliased.client(key="") as http:
        assert http.get("/v1/models", headers={"x-api-key": aliased.key}).status_code == 401


def test_a_project_takes_no_name_of_the_operators(sdk: openai.OpenAI, aliased: ApiServer) -> None:
    with aliased.client() as http:
        taken = http.post("/v1/aliases", json={"name": "gpt-4o-mini", "model": BASE})
        assert (taken.status_code, taken.json()["error"]["code"]) == (400, "name_taken")
        assert "the operator's" in taken.json()["error"]["message"]
        pointed = http.post("/v1/aliases", json={"name": "bot", "model": "gpt-base"})
        assert (pointed.status_code, pointed.json()["error"]["param"]) == (404, "model")
        assert "an alias points to a model" in pointed.json()["error"]["message"]
