"""A model's settings on the way to the inference server: what arrives there, and who gets so far."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from shared.records import DEFAULT_PROJECT
from shared.store.client import Client
from shared.store.permissions import PermissionStore
from shared.store.presence import Presence
from shared.store.registry import Registry
from tests.api_server import BASE, ApiServer, know_key, make_adapter, make_base, make_replica, with_store
from tests.batch_requests import content, ended, line, sdk_of, start
from tests.fakes.upstream import Upstream
from tests.integration.test_gateway_responses import response
from tests.integration.test_gateway_stored import DONE, completion, piece

MINE = f"ft:{BASE}:acme:style:AbCdEfGh"
PLAIN = f"ft:{BASE}:acme:plain:ZyXwVuTs"
TEMPLATE = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
USER: Any = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream(pause_s=0.0) as server:
        yield server


@pytest.fixture
def tuned(api: ApiServer, redis_url: str, upstream: Upstream) -> ApiServer:
    """The API with a model that has settings, one that has none, and a server for both."""

    async def fill(client: Client) -> None:
        registry = Registry(client)
        await registry.put_base(make_base())
        await registry.publish(make_adapter(MINE))
        await registry.publish(make_adapter(PLAIN, sha256="b" * 64))
        await Presence(client).beat_replica(make_replica(upstream.url), ttl_s=60)

    with_store(redis_url, fill)
    change(api, system_prompt="Be brief.", temperature=0.5, max_completion_tokens=32, stop="END")
    return api


def change(api: ApiServer, **changes: Any) -> None:
    with api.client() as http:
        http.post(f"/v1/models/{MINE}/settings", json=changes).raise_for_status()


def sent(upstream: Upstream) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(upstream.received[-1].body)
    return body


def test_chat_and_completions_are_filled(tuned: ApiServer, upstream: Upstream) -> None:
    sdk = sdk_of(tuned)
    sdk.chat.completions.create(model=MINE, messages=[USER])
    assert sent(upstream) == {
        "model": MINE, "messages": [SYSTEM, USER], "temperature": 0.5, "max_completion_tokens": 32, "stop": ["END"],
    }  # fmt: skip
    stream = sdk.chat.completions.create(model=MINE, messages=[USER], stream=True, temperature=1, max_tokens=5, stop=[])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hello!"
    assert sent(upstream) == {
        "model": MINE, "messages": [SYSTEM, USER], "temperature": 1, "max_tokens": 5, "stop": [], "stream": True,
    }  # fmt: skip
    sdk.completions.create(model=MINE, prompt="Once")
    assert sent(upstream) == {
        "model": MINE, "prompt": "Once", "temperature": 0.5, "max_tokens": 32, "stop": ["END"],
    }  # fmt: skip


def test_a_stored_completion_shows_what_the_model_was_asked(tuned: ApiServer, upstream: Upstream) -> None:
    sdk = sdk_of(tuned)
    upstream.answer = completion("chatcmpl-1")
    sdk.chat.completions.create(model=MINE, messages=[USER], store=True, top_p=0.5)
    upstream.events = [piece(content="Hi"), piece(finish="stop"), DONE]
    list(sdk.chat.completions.create(model=MINE, messages=[USER], store=True, top_p=0.5, stream=True))
    for completion_id in ("chatcmpl-1", "chatcmpl-s"):
        kept = sdk.chat.completions.retrieve(completion_id).to_dict()
        assert (kept["temperature"], kept["top_p"], kept["presence_penalty"]) == (0.5, 0.5, 0.0)
        messages = sdk.chat.completions.messages.list(completion_id, order="asc")
        assert [message.content for message in messages] == ["Be brief.", "hi"]


def test_a_conversation_of_responses_is_filled_at_every_turn(tuned: ApiServer, upstream: Upstream) -> None:
    sdk = sdk_of(tuned)
    upstream.answer = json.dumps(response()).encode()
    first = sdk.responses.create(model=MINE, input="hi")
    assert sent(upstream).items() >= {"instructions": "Be brief.", "max_output_tokens": 32, "input": "hi"}.items()
    sdk.responses.create(model=MINE, input="and?", previous_response_id=first.id)
    assert sent(upstream)["instructions"] == "Be brief."
    own = sdk.responses.create(model=MINE, input=[{"role": "developer", "content": "Be long."}, USER])
    assert "instructions" not in sent(upstream)
    sdk.responses.create(model=MINE, input="and?", previous_response_id=own.id)
    assert "instructions" not in sent(upstream), "the conversation has its own"
    sdk.responses.create(model=MINE, input="and?", instructions="Be long.")
    assert sent(upstream)["instructions"] == "Be long."


def test_messages_are_filled(tuned: ApiServer, upstream: Upstream) -> None:
    client = anthropic.Anthropic(base_url=tuned.url, api_key=tuned.key, max_retries=0)
    client.messages.create(model=MINE, messages=[USER], max_tokens=5)
    assert sent(upstream) == {
        "model": MINE, "messages": [USER], "max_tokens": 5, "system": "Be brief.", "temperature": 0.5,
        "stop_sequences": ["END"],
    }  # fmt: skip
    client.messages.create(model=MINE, messages=[USER], max_tokens=5, system="Be long.", extra_body={"temperature": 0})
    assert (sent(upstream)["system"], sent(upstream)["temperature"]) == ("Be long.", 0)


def test_the_template_goes_where_the_server_takes_it(tuned: ApiServer, upstream: Upstream) -> None:
    sdk = sdk_of(tuned)
    change(tuned, chat_template=TEMPLATE)
    values = {"chat_template_kwargs": {"enable_thinking": False}}
    sdk.chat.completions.create(model=MINE, messages=[USER], extra_body=values)
    assert sent(upstream)["chat_template"] == TEMPLATE
    assert sent(upstream)["chat_template_kwargs"] == values["chat_template_kwargs"]
    sdk.completions.create(model=MINE, prompt="Once")
    assert "chat_template" not in json.dumps(sent(upstream))
    upstream.answer = json.dumps(response()).encode()
    sdk.responses.create(model=MINE, input="hi", extra_body=values)
    assert sent(upstream)["chat_template_kwargs"] == {"enable_thinking": False, "chat_template": TEMPLATE}
    anthropic.Anthropic(base_url=tuned.url, api_key=tuned.key).messages.create(
        model=MINE, messages=[USER], max_tokens=5
    )
    assert sent(upstream)["chat_template_kwargs"] == {"chat_template": TEMPLATE}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": [USER]}),
        ("chat/completions", {"messages": [USER], "store": True, "stream": True}),
        ("completions", {"prompt": "hi"}),
        ("embeddings", {"messages": [USER]}),
        ("responses", {"input": "hi"}),
        ("responses/input_tokens", {"input": "hi"}),
        ("messages", {"messages": [USER], "max_tokens": 5}),
        ("messages/count_tokens", {"messages": [USER]}),
    ],
)
def test_no_template_of_a_client_reaches_the_server(
    tuned: ApiServer, upstream: Upstream, path: str, body: dict[str, Any]
) -> None:
    with tuned.client() as http:
        for model in (MINE, PLAIN, BASE):
            for field, value in (("chat_template", "x"), ("chat_template_kwargs", {"chat_template": "x"})):
                answer = http.post(f"/v1/{path}", json={"model": model, **body, field: value})
                assert answer.status_code == 400
                assert f"leave '{field}" in answer.json()["error"]["message"]
    assert upstream.received == []


def test_a_request_without_settings_goes_through_untouched(tuned: ApiServer, upstream: Upstream) -> None:
    body = b'{ "model":"%s",  "messages":[{"role":"user","content":"hi"}], "odd": [1.0, null] }' % PLAIN.encode()
    with tuned.client() as http:
        http.post("/v1/chat/completions", content=body).raise_for_status()
    assert upstream.received[-1].body == body


def test_who_shares_a_model_gets_its_settings(tuned: ApiServer, redis_url: str, upstream: Upstream) -> None:
    with_store(redis_url, lambda client: PermissionStore(client).grant(MINE, ["proj_other"]))
    guest = sdk_of(tuned, know_key(redis_url, "sk-guest", project="proj_other"))
    guest.chat.completions.create(model=MINE, messages=[USER])
    assert sent(upstream)["messages"] == [SYSTEM, USER]


def new_key(api: ApiServer) -> tuple[str, str]:
    with api.client() as http:
        made = http.post(f"/v1/organization/projects/{DEFAULT_PROJECT}/api_keys", json={"name": "k"}).json()
    return made["id"], made["value"]


def test_keys_that_are_not_listed_are_refused_everywhere(tuned: ApiServer, upstream: Upstream) -> None:
    (id, listed), (_, other) = new_key(tuned), new_key(tuned)
    change(tuned, allowed_keys=[id])
    upstream.answer = json.dumps(response()).encode()
    for path, body in (
        ("chat/completions", {"messages": [USER]}),
        ("completions", {"prompt": "hi"}),
        ("responses", {"input": "hi"}),
        ("messages", {"messages": [USER], "max_tokens": 5}),
        ("messages/count_tokens", {"messages": [USER]}),
        ("embeddings", {"input": "hi"}),
    ):
        with tuned.client(other) as http:
            refused = http.post(f"/v1/{path}", json={"model": MINE, **body})
            unknown = http.post(f"/v1/{path}", json={"model": "ft:unknown", **body})
        assert refused.status_code == unknown.status_code == 404
        assert refused.json() == json.loads(unknown.text.replace("ft:unknown", MINE))
        with tuned.client(listed) as http:
            assert http.post(f"/v1/{path}", json={"model": MINE, **body}).status_code in (200, 400)
    assert {json.loads(one.body)["model"] for one in upstream.received} == {MINE}
    assert len(upstream.received) == 5, "embeddings are refused for what the base cannot do"


def test_a_batch_asks_with_the_key_that_created_it(tuned: ApiServer, upstream: Upstream) -> None:
    (id, listed), (_, other) = new_key(tuned), new_key(tuned)
    change(tuned, allowed_keys=[id])
    for key, status in ((listed, 200), (tuned.key, 200), (other, 404)):
        sdk: openai.OpenAI = sdk_of(tuned, key)
        batch = ended(sdk, start(sdk, [line(1, model=MINE)]))
        (answer,) = content(sdk, batch.output_file_id or batch.error_file_id)
        assert answer["response"]["status_code"] == status
    assert answer["response"]["body"]["error"]["code"] == "model_not_found"
    assert [json.loads(one.body)["messages"][0] for one in upstream.received] == [SYSTEM, SYSTEM]


def test_a_batch_brings_no_template(tuned: ApiServer, upstream: Upstream) -> None:
    sdk = sdk_of(tuned)
    batch = ended(sdk, start(sdk, [line(1, model=MINE, chat_template="x")]))
    (answer,) = content(sdk, batch.error_file_id)
    assert answer["response"]["body"]["error"]["param"] == "chat_template"
    assert upstream.received == []
