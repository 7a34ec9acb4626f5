"""Stored chat completions: kept before the client has the answer, listed, labelled, deleted, and only one's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
import redis

from shared import keys
from shared.store.client import Client
from shared.store.presence import Presence
from shared.store.registry import Registry
from tests.api_server import BASE, ApiServer, know_key, make_base, make_replica, with_store
from tests.fakes.upstream import Upstream

MESSAGES: list[Any] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
]
FOREIGN = "sk-foreign"


def completion(completion_id: str) -> bytes:
    """Return an answer as vLLM writes it, nulls and all."""
    return (
        b'{"id":"%s","object":"chat.completion","created":1700000000,"model":"%s","choices":[{"index":0,"message":'
        b'{"role":"assistant","content":"Hi \\"annotations\\":null","refusal":null,"annotations":null,"audio":null,'
        b'"function_call":null},"logprobs":null,"finish_reason":"stop"}],"service_tier":null,"usage":'
        b'{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2,"prompt_tokens_details":null}}'
    ) % (completion_id.encode(), BASE.encode())


def event(**chunk: Any) -> bytes:
    body = {"id": "chatcmpl-s", "object": "chat.completion.chunk", "created": 1, "model": BASE, **chunk}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def piece(index: int = 0, finish: str | None = None, **delta: Any) -> bytes:
    return event(choices=[{"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}])


DONE = b"data: [DONE]\n\n"


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@pytest.fixture
def sdk(api: ApiServer, redis_url: str, upstream: Upstream) -> openai.OpenAI:
    async def fill(client: Client) -> None:
        await Registry(client).put_base(make_base())
        await Presence(client).beat_replica(make_replica(upstream.url), ttl_s=60)

    with_store(redis_url, fill)
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0)


def store(sdk: openai.OpenAI, upstream: Upstream, completion_id: str, **options: Any) -> None:
    upstream.answer = completion(completion_id)
    sdk.chat.completions.create(**{"model": BASE, "messages": MESSAGES, "store": True, **options})


def test_a_stored_completion_is_there_at_once_with_what_was_asked(
    sdk: openai.OpenAI, api: ApiServer, upstream: Upstream
) -> None:
    upstream.answer = completion("chatcmpl-1")
    raw = sdk.chat.completions.with_raw_response.create(
        model=BASE, messages=MESSAGES, store=True, metadata={"a": "b"}, temperature=0.5, seed=7, user="me"
    )
    assert json.loads(raw.text)["choices"][0]["message"]["content"] == 'Hi "annotations":null'
    kept = sdk.chat.completions.retrieve("chatcmpl-1").to_dict()
    assert kept["choices"][0]["message"] == {  # type: ignore[index]
        "role": "assistant", "content": 'Hi "annotations":null', "refusal": None, "audio": None,
    }  # fmt: skip
    shown = ("metadata", "request_id", "temperature", "top_p", "seed", "tools", "input_user", "response_format")
    assert {name: kept[name] for name in shown} == {
        "metadata": {"a": "b"}, "request_id": raw.headers["x-request-id"], "temperature": 0.5, "top_p": 1.0,
        "seed": 7, "tools": None, "input_user": "me", "response_format": None,
    }  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"store": False}, {"store": None}, {"metadata": {"a": "b"}}])
def test_what_was_not_to_be_stored_is_not(sdk: openai.OpenAI, upstream: Upstream, options: dict[str, Any]) -> None:
    upstream.answer = completion("chatcmpl-1")
    sdk.chat.completions.create(model=BASE, messages=MESSAGES, **options)
    with pytest.raises(openai.NotFoundError):
        sdk.chat.completions.retrieve("chatcmpl-1")
    assert sdk.chat.completions.list().data == []


def test_a_stream_goes_through_untouched_and_is_kept_whole(
    sdk: openai.OpenAI, api: ApiServer, upstream: Upstream
) -> None:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a"'}}
    more = {"index": 0, "function": {"arguments": ": 1}"}}
    sent = [
        piece(role="assistant", content=""),
        piece(content="He"),
        piece(content="llo")[:30],
        piece(content="llo")[30:] + piece(1, tool_calls=[call]),
        piece(1, finish="tool_calls", tool_calls=[more]),
        piece(finish="stop"),
        event(choices=[], usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}),
        DONE,
    ]
    upstream.events = sent
    with api.client() as http:
        answer = http.post(
            "/v1/chat/completions", json={"model": BASE, "messages": MESSAGES, "store": True, "stream": True}
        )
    assert answer.content == b"".join(sent)
    kept = sdk.chat.completions.retrieve("chatcmpl-s")
    assert [choice.finish_reason for choice in kept.choices] == ["stop", "tool_calls"]
    assert kept.choices[0].message.content == "Hello"
    (whole,) = kept.choices[1].message.tool_calls or []
    assert whole.type == "function" and whole.function.arguments == '{"a": 1}' and whole.id == "call_1"
    assert kept.usage is not None and kept.usage.total_tokens == 3


@pytest.mark.parametrize(
    "events",
    [
        [piece(content="He"), DONE],
        [piece(content="He"), b'data: {"error": {"message": "engine died"}}\n\n', DONE],
        [piece(content="He", finish="stop")],
        [b"data: what?\n\n", DONE],
    ],
)
def test_a_stream_without_its_end_is_not_kept(
    sdk: openai.OpenAI, api: ApiServer, upstream: Upstream, events: list[bytes]
) -> None:
    upstream.events = events
    with api.client() as http:
        body = {"model": BASE, "messages": MESSAGES, "store": True, "stream": True}
        assert http.post("/v1/chat/completions", json=body).content == b"".join(events)
    assert sdk.chat.completions.list().data == []


def test_lists_are_paged_filtered_and_ordered(sdk: openai.OpenAI, upstream: Upstream) -> None:
    for number in range(5):
        store(sdk, upstream, f"chatcmpl-{number}", metadata={"odd": str(number % 2), "of": "five"})
    assert [one.id for one in sdk.chat.completions.list(limit=2)] == [f"chatcmpl-{number}" for number in range(5)]
    page = sdk.chat.completions.list(limit=2, order="desc", metadata={"odd": "0", "of": "five"})
    assert [one.id for one in page.data] == ["chatcmpl-4", "chatcmpl-2"] and page.has_more
    assert [one.id for one in page.get_next_page().data] == ["chatcmpl-0"]
    assert sdk.chat.completions.list(model="another").data == []
    assert len(sdk.chat.completions.list(model=BASE).data) == 5
    with pytest.raises(openai.NotFoundError):
        sdk.chat.completions.list(after="chatcmpl-nope")


def test_more_than_one_look_into_the_list(sdk: openai.OpenAI, upstream: Upstream) -> None:
    for number in range(53):
        store(sdk, upstream, f"chatcmpl-{number}", metadata={"last": str(number == 52)})
    assert [one.id for one in sdk.chat.completions.list(metadata={"last": "True"}).data] == ["chatcmpl-52"]


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "order=up"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat/completions/chatcmpl-1/messages"])
def test_wrong_list_parameters_are_400(sdk: openai.OpenAI, api: ApiServer, path: str, query: str) -> None:
    with api.client() as http:
        answer = http.get(f"{path}?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, query.partition("=")[0])


def test_messages_have_ids_texts_and_parts(sdk: openai.OpenAI, api: ApiServer, upstream: Upstream) -> None:
    store(sdk, upstream, "chatcmpl-1")
    with api.client() as http:
        first = http.get("/v1/chat/completions/chatcmpl-1/messages?limit=1").json()
        rest = http.get("/v1/chat/completions/chatcmpl-1/messages?after=chatcmpl-1-0").json()
        backwards = http.get("/v1/chat/completions/chatcmpl-1/messages?order=desc").json()
        lost = http.get("/v1/chat/completions/chatcmpl-1/messages?after=chatcmpl-1-9")
    assert first["data"] == [
        {"refusal": None, "role": "developer", "content": "Be brief.", "id": "chatcmpl-1-0", "content_parts": None}
    ]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    (item,) = rest["data"]
    assert (item["content"], item["content_parts"]) == ("hi", MESSAGES[1]["content"])
    assert [one["id"] for one in backwards["data"]] == ["chatcmpl-1-1", "chatcmpl-1-0"]
    assert lost.status_code == 404


def test_metadata_are_replaced_and_nothing_else(sdk: openai.OpenAI, upstream: Upstream) -> None:
    store(sdk, upstream, "chatcmpl-1", metadata={"a": "b"})
    assert sdk.chat.completions.update("chatcmpl-1", metadata={"c": "d"}).to_dict()["metadata"] == {"c": "d"}
    assert sdk.chat.completions.update("chatcmpl-1", metadata=None).to_dict()["metadata"] == {}
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.update("chatcmpl-1", metadata={}, extra_body={"model": "x"})
    assert (caught.value.code, caught.value.param) == ("unknown_parameter", "model")


BAD_METADATA = [
    {str(number): "x" for number in range(17)},
    {"k" * 65: "x"},
    {"": "x"},
    {"k": "v" * 513},
    {"k": 1},
    {"k": None},
    ["k"],
    "k",
]


@pytest.mark.parametrize("metadata", BAD_METADATA)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat/completions/chatcmpl-1", "/v1/responses"])
def test_wrong_metadata_are_400(
    sdk: openai.OpenAI, api: ApiServer, upstream: Upstream, path: str, metadata: Any
) -> None:
    body = {} if path.endswith("-1") else {"model": BASE, "messages": MESSAGES, "input": "x", "store": True}
    with api.client() as http:
        answer = http.post(path, json={**body, "metadata": metadata})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("metadata")
    assert upstream.received == []


@pytest.mark.parametrize("body", [{}, {"metadata": {}, "model": "x"}, [], None])
def test_an_update_without_metadata_alone_is_400(sdk: openai.OpenAI, api: ApiServer, body: Any) -> None:
    with api.client() as http:
        assert http.post("/v1/chat/completions/chatcmpl-1", json=body).status_code == 400


def test_deleted_and_foreign_completions_look_unknown(
    sdk: openai.OpenAI, api: ApiServer, redis_url: str, upstream: Upstream
) -> None:
    store(sdk, upstream, "chatcmpl-1")
    know_key(redis_url, FOREIGN, project="proj_other")
    foreign = openai.OpenAI(base_url=f"{api.url}/v1", api_key=FOREIGN, max_retries=0)

    def refused(client: openai.OpenAI) -> set[str]:
        messages = set()
        for call in (
            lambda: client.chat.completions.retrieve("chatcmpl-1"),
            lambda: client.chat.completions.update("chatcmpl-1", metadata={}),
            lambda: client.chat.completions.delete("chatcmpl-1"),
            lambda: client.chat.completions.messages.list("chatcmpl-1"),
        ):
            with pytest.raises(openai.NotFoundError) as caught:
                call()
            messages.add(caught.value.message)
        return messages

    as_foreign = refused(foreign)
    assert foreign.chat.completions.list().data == []
    gone = sdk.chat.completions.delete("chatcmpl-1")
    assert (gone.id, gone.object, gone.deleted) == ("chatcmpl-1", "chat.completion.deleted", True)
    assert refused(sdk) == as_foreign
    assert sdk.chat.completions.list().data == []


def test_completions_expire_and_their_entries_go(sdk: openai.OpenAI, redis_url: str, upstream: Upstream) -> None:
    for number in range(3):
        store(sdk, upstream, f"chatcmpl-{number}")
    with redis.Redis.from_url(redis_url) as client:
        ttl = client.ttl(keys.completion("chatcmpl-0"))
        assert 29 * 86_400 < ttl <= 30 * 86_400
        client.delete(keys.completion("chatcmpl-0"))
        assert [one.id for one in sdk.chat.completions.list().data] == ["chatcmpl-1", "chatcmpl-2"]
        assert client.zcard(keys.completions("proj_default")) == 2
        client.delete(keys.completion("chatcmpl-1"))
        store(sdk, upstream, "chatcmpl-3")
        assert client.zrange(keys.completions("proj_default"), 0, -1) == [b"chatcmpl-2", b"chatcmpl-3"]


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_completions_are_deleted_while_they_are_listed(
    sdk: openai.OpenAI, upstream: Upstream, order: Literal["asc", "desc"]
) -> None:
    for number in range(5):
        store(sdk, upstream, f"chatcmpl-{number}")
    seen = []
    for one in sdk.chat.completions.list(limit=2, order=order):
        sdk.chat.completions.delete(one.id)
        seen.append(one.id[-1])
    assert "".join(seen) == ("01234" if order == "asc" else "43210")


def test_completion_that_expires_between_two_pages_is_still_a_place(
    sdk: openai.OpenAI, redis_url: str, upstream: Upstream
) -> None:
    for number in range(4):
        store(sdk, upstream, f"chatcmpl-{number}")
    page = sdk.chat.completions.list(limit=2)
    with redis.Redis.from_url(redis_url) as client:
        client.delete(keys.completion("chatcmpl-0"), keys.completion("chatcmpl-1"))
        sdk.chat.completions.list()
        assert client.zcard(keys.completions("proj_default")) == 2
        assert [one.id for one in page.get_next_page().data] == ["chatcmpl-2", "chatcmpl-3"]
        client.delete(keys.completion("chatcmpl-2"))
        store(sdk, upstream, "chatcmpl-4")
        assert client.zcard(keys.completions("proj_default")) == 2
        found = sdk.chat.completions.list(after="chatcmpl-2").data
        assert [one.id for one in found] == ["chatcmpl-3", "chatcmpl-4"]


def test_an_answer_cut_short_is_an_error_and_not_kept(sdk: openai.OpenAI, upstream: Upstream) -> None:
    upstream.behaviour = "cut"
    with pytest.raises(openai.InternalServerError) as caught:
        sdk.chat.completions.create(model=BASE, messages=MESSAGES, store=True)
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_error")
    assert sdk.chat.completions.list().data == []


def test_parts_of_stored_messages_may_be_plain_texts(sdk: openai.OpenAI, api: ApiServer, upstream: Upstream) -> None:
    content = ["Hel", {"type": "text", "text": "lo"}, {"type": "text", "text": None}]
    store(sdk, upstream, "chatcmpl-parts", messages=[{"role": "user", "content": content}])
    with api.client() as http:
        [item] = http.get("/v1/chat/completions/chatcmpl-parts/messages").json()["data"]
    assert item["content"] == "Hello"
    assert [part["text"] for part in item["content_parts"]] == ["Hel", "lo", ""]
