"""The Responses API over an inference server that keeps nothing: conversations, refusals, and what is mended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import redis

from shared import keys
from shared.store.client import Client
from shared.store.presence import Presence
from shared.store.registry import Registry
from tests.api_server import BASE, ApiServer, know_key, make_base, make_replica, with_store
from tests.fakes.upstream import Upstream

FOREIGN = "sk-foreign"
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}", "status": "completed"}


def response(text: str = "Hello!", **changes: Any) -> dict[str, Any]:
    """Return a response as vLLM writes it."""
    part: dict[str, Any] = {"annotations": [], "text": text, "type": "output_text", "logprobs": None}
    message = {"id": "msg_a", "content": [part], "role": "assistant", "status": "completed", "type": "message"}
    return {
        "id": "resp_upstream", "created_at": 1_700_000_000, "incomplete_details": None, "instructions": None,
        "metadata": None, "model": BASE, "object": "response", "output": [message | {"phase": None}],
        "parallel_tool_calls": True, "temperature": 1.0, "tool_choice": "none", "tools": [], "top_p": 1.0,
        "background": False, "status": "completed", "text": None, "truncation": "disabled", "user": None,
        "kv_transfer_params": None, "input_messages": None, **changes,
    }  # fmt: skip


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        server.answer = json.dumps(response()).encode()
        yield server


@pytest.fixture
def sdk(api: ApiServer, redis_url: str, upstream: Upstream) -> openai.OpenAI:
    async def fill(client: Client) -> None:
        await Registry(client).put_base(make_base())
        await Presence(client).beat_replica(make_replica(upstream.url), ttl_s=60)

    with_store(redis_url, fill)
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0)


def sent(upstream: Upstream, number: int = -1) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(upstream.received[number].body)
    return body


def answer_as(upstream: Upstream, sdk: openai.OpenAI, **options: Any) -> str:
    """Have a request answered as the real server would, under the id that it is given; returns that id."""
    upstream.answer = json.dumps(response(id="resp_upstream")).encode()
    made = sdk.responses.create(**{"model": BASE, "input": "hi", **options})
    return str(made.id)


def test_the_server_gets_an_id_of_ours_and_nothing_that_is_ours(sdk: openai.OpenAI, upstream: Upstream) -> None:
    nulls = {"truncation": None, "service_tier": None, "background": None, "user": None}
    body = {"request_id": "resp_theirs", "store": True, "background": False, "seed": 7, **nulls}
    made = sdk.responses.create(model=BASE, input="hi", extra_body=body)
    got = sent(upstream)
    assert got.keys() == {"request_id", "seed", "model", "input"}
    assert got["request_id"].startswith("resp_") and got["request_id"] != "resp_theirs"
    assert sdk.responses.retrieve(made.id).id == made.id


def test_the_answer_is_mended(sdk: openai.OpenAI, api: ApiServer, upstream: Upstream) -> None:
    tool = {"type": "function", "name": "f", "parameters": {"default": None}, "strict": None, "description": None}
    upstream.answer = json.dumps(
        response(tools=[tool], output=[*response()["output"], CALL | {"namespace": None}])
    ).encode()
    with api.client() as http:
        made = http.post("/v1/responses", json={"model": BASE, "input": "hi", "store": False}).json()
    assert made["error"] is None and made["text"] == {"format": {"type": "text"}} and made["store"] is False
    assert "user" not in made and "input_messages" not in made
    assert made["output"][0]["content"] == [
        {"annotations": [], "text": "Hello!", "type": "output_text", "logprobs": []}
    ]
    assert made["output"][1] == CALL
    assert made["tools"] == [{"type": "function", "name": "f", "parameters": {"default": None}, "strict": None}]


def test_a_conversation_goes_in_front_of_the_new_input(sdk: openai.OpenAI, upstream: Upstream) -> None:
    first = answer_as(upstream, sdk, input="one")
    second = answer_as(upstream, sdk, input=[{"role": "user", "content": "two"}], previous_response_id=first)
    answer_as(upstream, sdk, input="three", previous_response_id=second)
    items = sent(upstream)["input"]
    assert [(item["role"], _text(item)) for item in items] == [
        ("user", "one"), ("assistant", "Hello!"), ("user", "two"), ("assistant", "Hello!"), ("user", "three"),
    ]  # fmt: skip
    assert sdk.responses.retrieve(second).previous_response_id == first
    sdk.responses.delete(first)
    with pytest.raises(openai.BadRequestError) as caught:
        answer_as(upstream, sdk, previous_response_id=second)
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")


def _text(item: dict[str, Any]) -> str:
    content = item["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def test_a_stream_goes_through_with_its_responses_mended_and_is_kept(
    sdk: openai.OpenAI, api: ApiServer, upstream: Upstream
) -> None:
    first = answer_as(upstream, sdk, input="one")
    tricky = json.dumps({"type": "response.output_text.delta", "delta": '"response":{"a"', "sequence_number": 1})
    last = json.dumps({"type": "response.completed", "response": response("Streamed"), "sequence_number": 2})
    events = [f"event: x\ndata: {data}\n\n".encode() for data in (tricky, last)]
    upstream.events = [events[0], events[1][:50], events[1][50:]]
    with api.client() as http:
        body = {"model": BASE, "input": "hi", "stream": True, "previous_response_id": first}
        passed = http.post("/v1/responses", json=body).content
    assert passed.startswith(events[0] + b"event: x\ndata: {"), "what holds no response does not change"
    told = json.loads(passed.removeprefix(events[0]).partition(b"data: ")[2])
    assert (told["type"], told["sequence_number"]) == ("response.completed", 2)
    assert (told["response"]["previous_response_id"], told["response"]["error"]) == (first, None)
    kept = sdk.responses.retrieve(sent(upstream)["request_id"])
    assert kept.to_dict() == told["response"], "what is kept is what was sent"


UNSUPPORTED = [
    ({"background": True}, "background"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"conversation": {"id": "conv_1"}}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"tools": [{"type": "function", "name": "f"}, {"type": "web_search"}]}, "tools[1].type"),
]
WRONG = [
    ({"input": 5}, "input"),
    ({"input": ["hi"]}, "input"),
    ({"input": {"role": "user"}}, "input"),
    ({"input": [{"type": ["a"]}]}, "input[0].type"),
    ({"input": [{"role": "user"}, {"role": "user", "id": 5}]}, "input[1].id"),
    ({"input": [{}] * 10_001}, "input"),
    ({"priority": 2**31}, "priority"),
    ({"store": "yes"}, "store"),
    ({"stream": "yes"}, "stream"),
    ({"background": 1}, "background"),
    ({"previous_response_id": 7}, "previous_response_id"),
    ({"previous_response_id": "resp_nope"}, "previous_response_id"),
    ({"tools": "f"}, "tools"),
    ({"tools": [{}]}, "tools[0].type"),
    ({"tools": ["f"]}, "tools[0]"),
]


@pytest.mark.parametrize(("fields", "param"), UNSUPPORTED + WRONG)
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/responses/input_tokens"])
def test_what_is_not_offered_or_wrong_is_400(
    sdk: openai.OpenAI, api: ApiServer, upstream: Upstream, path: str, fields: dict[str, Any], param: str
) -> None:
    with api.client() as http:
        answer = http.post(path, json={"model": BASE, "input": "hi", **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    if any(fields is unsupported for unsupported, _ in UNSUPPORTED):
        assert answer.json()["error"]["code"] == "unsupported_parameter"
    assert upstream.received == []


@pytest.mark.parametrize(("body", "param"), [({"model": BASE}, "input"), ({"input": "x"}, "model")])
def test_missing_fields_are_named(sdk: openai.OpenAI, api: ApiServer, body: dict[str, Any], param: str) -> None:
    with api.client() as http:
        error = http.post("/v1/responses", json=body).json()["error"]
    assert (error["code"], error["param"]) == ("missing_required_parameter", param)


def test_tokens_are_counted_by_the_rendering(sdk: openai.OpenAI, upstream: Upstream) -> None:
    upstream.answer = b'{"request_id": "x", "token_ids": [1, 2, 3], "sampling_params": {}}'
    assert sdk.responses.input_tokens.count(model=BASE, input="hi").input_tokens == 3
    assert upstream.received[0].path == "/v1/responses/render"


def test_input_items_are_listed_last_first(sdk: openai.OpenAI, upstream: Upstream) -> None:
    given: Any = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        CALL,
        {"type": "function_call_output", "call_id": "c1", "output": "12"},
    ]
    made = answer_as(upstream, sdk, input=given)
    items = [item.to_dict() for item in sdk.responses.input_items.list(made, limit=3)]
    assert [item["type"] for item in items] == ["function_call_output", "function_call", "message", "message"]
    assert items[1] == CALL
    assert items[2]["content"] == [{"type": "output_text", "text": "hello", "annotations": [], "logprobs": []}]
    assert items[3]["content"] == [{"type": "input_text", "text": "hi"}]
    assert len({item["id"] for item in items}) == 4
    ordered = sdk.responses.input_items.list(made, order="asc").data
    assert [item.to_dict()["id"] for item in ordered] == [item["id"] for item in items[::-1]]


def test_what_only_background_responses_can_do_is_400(sdk: openai.OpenAI, api: ApiServer, upstream: Upstream) -> None:
    made = answer_as(upstream, sdk)
    with pytest.raises(openai.BadRequestError, match="background"):
        sdk.responses.cancel(made)
    with api.client() as http:
        assert http.get(f"/v1/responses/{made}?stream=true").json()["error"]["param"] == "stream"
        assert http.get(f"/v1/responses/{made}?stream=false").status_code == 200
        assert http.post("/v1/responses/compact", json={}).json()["error"]["code"] == "unsupported_endpoint"


def test_deleted_and_foreign_responses_look_unknown(
    sdk: openai.OpenAI, api: ApiServer, redis_url: str, upstream: Upstream
) -> None:
    made = answer_as(upstream, sdk)
    know_key(redis_url, FOREIGN, project="proj_other")
    foreign = openai.OpenAI(base_url=f"{api.url}/v1", api_key=FOREIGN, max_retries=0)

    def refused(client: openai.OpenAI) -> set[str]:
        messages = set()
        for call in (
            lambda: client.responses.retrieve(made),
            lambda: client.responses.delete(made),
            lambda: client.responses.cancel(made),
            lambda: client.responses.input_items.list(made),
        ):
            with pytest.raises(openai.NotFoundError) as caught:
                call()
            messages.add(caught.value.message)
        return messages

    as_foreign = refused(foreign)
    with pytest.raises(openai.BadRequestError, match="not found"):
        foreign.responses.create(model=BASE, input="x", previous_response_id=made)
    with api.client() as http:
        gone = http.delete(f"/v1/responses/{made}")
    assert (gone.status_code, gone.json()) == (200, {"id": made, "object": "response", "deleted": True})
    assert refused(sdk) == as_foreign


def test_responses_expire(sdk: openai.OpenAI, redis_url: str, upstream: Upstream) -> None:
    made = answer_as(upstream, sdk)
    with redis.Redis.from_url(redis_url) as client:
        assert 29 * 86_400 < client.ttl(keys.response(made)) <= 30 * 86_400


def test_a_conversation_has_at_most_a_requests_bytes(sdk: openai.OpenAI, api: ApiServer, upstream: Upstream) -> None:
    text = "x" * (api.settings.max_body_bytes * 2 // 3)
    first = answer_as(upstream, sdk, input=text)
    second = answer_as(upstream, sdk, input=text, previous_response_id=first)
    with pytest.raises(openai.BadRequestError) as caught:
        answer_as(upstream, sdk, input="on", previous_response_id=second)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "previous_response_id")
