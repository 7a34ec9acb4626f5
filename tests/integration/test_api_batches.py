"""Batches through the official SDK: files in, requests answered, files out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from msgspec.structs import replace

from shared.store.batches import BatchStore
from shared.store.client import Client
from tests.api_server import BASE, ApiServer, know_key, with_store
from tests.batch_requests import (
    CHAT,
    Model,
    completed,
    content,
    ended,
    line,
    sdk_of,
    serve,
    start,
    until,
    upload,
)


@pytest.fixture
def upstream() -> Iterator[Model]:
    with Model() as server:
        yield server


@pytest.fixture
def sdk(api: ApiServer, redis_url: str, upstream: Model) -> openai.OpenAI:
    serve(redis_url, upstream)
    return sdk_of(api)


def test_requests_are_answered_and_the_output_is_a_file(sdk: openai.OpenAI, upstream: Model) -> None:
    made = start(sdk, [line(n) for n in range(5)], metadata={"night": "1"})
    assert (made.status, made.object, made.completion_window) == ("validating", "batch", "24h")
    assert made.output_file_id is None and made.in_progress_at is None
    assert made.expires_at == made.created_at + 86_400

    done = ended(sdk, made)
    assert done.status == "completed" and done.errors is None and done.error_file_id is None
    assert done.model == BASE and done.metadata == {"night": "1"}
    assert done.request_counts is not None and done.request_counts.to_dict() == {
        "total": 5, "completed": 5, "failed": 0,
    }  # fmt: skip
    assert done.usage is not None
    assert (done.usage.input_tokens, done.usage.output_tokens, done.usage.total_tokens) == (15, 10, 25)
    assert done.in_progress_at and done.finalizing_at and done.completed_at

    lines = content(sdk, done.output_file_id)
    assert [one["custom_id"] for one in lines] == [f"r{n}" for n in range(5)]
    first = lines[0]
    assert first["id"].startswith("batch_req_") and first["error"] is None
    assert first["response"]["status_code"] == 200 and first["response"]["request_id"].startswith("req_")
    assert first["response"]["body"]["choices"][0]["message"]["content"] == "Hello!"

    file = sdk.files.retrieve(str(done.output_file_id))
    assert (file.purpose, file.filename, file.expires_at) == ("batch_output", f"{made.id}_output.jsonl", None)
    assert file.id in [one.id for one in sdk.files.list(purpose="batch_output")]
    assert {one.headers["x-vllm-priority"] for one in upstream.received} == {"1000"}


def test_refused_requests_are_in_the_error_file(sdk: openai.OpenAI, upstream: Model) -> None:
    lines = [line(0), line(1, model="nobody"), line(2, stream=True), line(3, priority="high")]
    done = ended(sdk, start(sdk, lines))
    assert done.status == "completed" and done.model is None
    assert done.request_counts is not None and done.request_counts.failed == 3
    assert [one["custom_id"] for one in content(sdk, done.output_file_id)] == ["r0"]
    errors = {one["custom_id"]: one["response"] for one in content(sdk, done.error_file_id)}
    assert errors["r1"]["status_code"] == 404 and errors["r1"]["body"]["error"]["code"] == "model_not_found"
    assert errors["r2"]["status_code"] == 400 and errors["r2"]["body"]["error"]["param"] == "stream"
    assert errors["r3"]["status_code"] == 400 and errors["r3"]["body"]["error"]["param"] == "priority"
    assert len(upstream.received) == 1


def test_without_success_there_is_no_output_file(sdk: openai.OpenAI) -> None:
    done = ended(sdk, start(sdk, [line(0, model="nobody")]))
    assert (done.status, done.output_file_id) == ("completed", None)
    assert done.error_file_id is not None


def test_wrong_lines_fail_the_batch(sdk: openai.OpenAI, upstream: Model) -> None:
    lines = [
        line(0), "{not json", line(0), line(2) | {"method": "GET"}, line(3, url="/v1/completions"),
        {"custom_id": "r4", "method": "POST", "url": CHAT, "body": {"messages": []}}, "", line(6) | {"custom_id": 7},
    ]  # fmt: skip
    done = ended(sdk, start(sdk, lines))
    assert done.status == "failed" and done.failed_at and done.errors is not None and done.errors.data is not None
    assert [(one.line, one.code, one.param) for one in done.errors.data] == [
        (2, "invalid_json_line", None), (3, "duplicate_custom_id", "custom_id"), (4, "invalid_method", "method"),
        (5, "url_mismatch", "url"), (6, "missing_required_parameter", "body.model"), (8, "invalid_value", "custom_id"),
    ]  # fmt: skip
    assert upstream.received == []


def test_empty_file_fails_the_batch(sdk: openai.OpenAI) -> None:
    done = ended(sdk, start(sdk, ["", " "]))
    assert done.errors is not None and done.errors.data is not None
    assert [(one.code, one.line) for one in done.errors.data] == [("empty_file", None)]


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"endpoint": "/v1/images/edits"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"input_file_id": "file-nothing"}, 404, "input_file_id"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 60}}, 400, "output_expires_after.seconds"),
        ({"metadata": {"k": 1}}, 400, "metadata"),
        ({"priority": 1}, 400, "priority"),
    ],
)
def test_wrong_requests_are_refused(
    sdk: openai.OpenAI, api: ApiServer, changes: dict[str, Any], status: int, param: str
) -> None:
    good = {"input_file_id": upload(sdk, [line(0)]), "endpoint": CHAT, "completion_window": "24h"}
    with api.client() as http:
        answer = http.post("/v1/batches", json=good | changes)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert sdk.batches.list().data == [] and not list(api.paths.batches.iterdir())


def test_file_of_another_purpose_is_refused(sdk: openai.OpenAI) -> None:
    file_id = upload(sdk, [line(0)], purpose="user_data")
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
    assert (caught.value.code, caught.value.param) == ("invalid_file_purpose", "input_file_id")


def test_idempotency_key_gives_one_batch(sdk: openai.OpenAI, upstream: Model) -> None:
    wanted: dict[str, Any] = {
        "input_file_id": upload(sdk, [line(0)]), "endpoint": CHAT, "completion_window": "24h",
        "extra_headers": {"Idempotency-Key": "tonight"},
    }  # fmt: skip
    first, second = sdk.batches.create(**wanted), sdk.batches.create(**wanted)
    assert first.id == second.id
    ended(sdk, first)
    assert len(upstream.received) == 1
    with pytest.raises(openai.ConflictError):
        sdk.batches.create(**wanted | {"metadata": {"another": "one"}})


def test_list_is_paged_newest_first_and_the_projects_own(sdk: openai.OpenAI, api: ApiServer, redis_url: str) -> None:
    file_id = upload(sdk, [line(0)])
    made = [sdk.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h").id for _ in range(5)]
    assert [one.id for one in sdk.batches.list(limit=2)] == made[::-1]
    page = sdk.batches.list(limit=2)
    assert page.has_more and [one.id for one in page.data] == made[:2:-1]
    foreign = sdk_of(api, know_key(redis_url, "sk-foreign", project="proj_other"))
    assert foreign.batches.list().data == []
    for call in (foreign.batches.retrieve, foreign.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            call(made[0])
    with pytest.raises(openai.NotFoundError):
        foreign.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
    for batch_id in made:
        ended(sdk, sdk.batches.retrieve(batch_id))


def test_cancelled_batch_keeps_what_was_answered(sdk: openai.OpenAI, api: ApiServer, upstream: Model) -> None:
    upstream.stuck = {f"prompt {n}" for n in range(2, 20)}
    made = start(sdk, [line(n) for n in range(20)])
    until(sdk, made, lambda found: completed(found) == 2)
    cancelling = sdk.batches.cancel(made.id)
    assert cancelling.status == "cancelling" and cancelling.cancelling_at
    assert sdk.batches.cancel(made.id).status in ("cancelling", "cancelled")
    done = ended(sdk, made)
    assert done.status == "cancelled" and done.cancelled_at
    assert done.request_counts is not None and done.request_counts.to_dict() == {
        "total": 20, "completed": 2, "failed": 18,
    }  # fmt: skip
    assert [one["custom_id"] for one in content(sdk, done.output_file_id)] == ["r0", "r1"]
    errors = content(sdk, done.error_file_id)
    assert {one["error"]["code"] for one in errors} == {"batch_cancelled"} and errors[0]["response"] is None
    assert upstream.left.wait(10), "the requests under way went on"
    assert not list(api.paths.batches.iterdir())


def test_batch_that_has_ended_is_not_cancelled(sdk: openai.OpenAI) -> None:
    done = ended(sdk, start(sdk, [line(0)]))
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.batches.cancel(done.id)
    assert caught.value.code == "invalid_batch_state"


def test_expired_batch_keeps_what_was_answered(sdk: openai.OpenAI, redis_url: str, upstream: Model) -> None:
    upstream.stuck = {"prompt 1"}
    made = start(sdk, [line(0), line(1)])
    until(sdk, made, lambda found: completed(found) == 1)

    async def let_time_pass(client: Client) -> None:
        await BatchStore(client).update(made.id, lambda record: replace(record, expires_at=int(time.time())))

    with_store(redis_url, let_time_pass)
    done = ended(sdk, made)
    assert done.status == "expired" and done.expired_at
    assert [one["custom_id"] for one in content(sdk, done.output_file_id)] == ["r0"]
    (error,) = content(sdk, done.error_file_id)
    assert (error["custom_id"], error["error"]["code"]) == ("r1", "batch_expired")


def test_deleting_the_input_takes_nothing_from_the_batch(sdk: openai.OpenAI, upstream: Model) -> None:
    upstream.delay_s = 0.3
    made = start(sdk, [line(n) for n in range(30)])
    assert sdk.files.delete(made.input_file_id).deleted
    done = ended(sdk, made)
    assert (done.status, completed(done)) == ("completed", 30)
    with pytest.raises(openai.NotFoundError):
        sdk.files.retrieve(made.input_file_id)
    assert upstream.most_at_once == 8


def test_busy_servers_are_asked_again(sdk: openai.OpenAI, upstream: Model) -> None:
    upstream.statuses = [429, 503, 500]
    done = ended(sdk, start(sdk, [line(0)]))
    assert (done.status, completed(done), done.error_file_id) == ("completed", 1, None)
    assert len(upstream.received) == 4


def test_output_expires_when_it_was_asked_to(sdk: openai.OpenAI) -> None:
    done = ended(sdk, start(sdk, [line(0)], output_expires_after={"anchor": "created_at", "seconds": 3600}))
    file = sdk.files.retrieve(str(done.output_file_id))
    assert file.expires_at == file.created_at + 3600


def test_embeddings_and_completions_have_batches(sdk: openai.OpenAI, redis_url: str, upstream: Model) -> None:
    serve(redis_url, upstream, tasks=("generate", "embed"))
    vector = {"object": "embedding", "index": 0, "embedding": [0.5]}
    usage = {"prompt_tokens": 4, "total_tokens": 4}
    upstream.answer = json.dumps({"object": "list", "model": BASE, "data": [vector], "usage": usage}, indent=1).encode()
    url = "/v1/embeddings"
    done = ended(sdk, start(sdk, [line(0, url=url, input="x")], endpoint=url))
    (answer,) = content(sdk, done.output_file_id)
    assert answer["response"]["body"]["data"] == [vector]
    assert done.usage is not None and (done.usage.input_tokens, done.usage.total_tokens) == (4, 4)

    url, upstream.answer = "/v1/completions", b""
    done = ended(sdk, start(sdk, [line(0, url=url, prompt="x")], endpoint=url))
    (answer,) = content(sdk, done.output_file_id)
    assert answer["response"]["body"]["choices"][0]["text"] == "Hello!"


def test_responses_of_a_batch_are_kept_as_live_ones_are(sdk: openai.OpenAI, upstream: Model) -> None:
    upstream.answer = json.dumps(
        {
            "id": "resp_upstream", "object": "response", "created_at": 1, "model": BASE, "status": "completed",
            "output": [], "tools": [], "tool_choice": "none", "parallel_tool_calls": True, "temperature": 1.0,
            "top_p": 1.0, "instructions": None, "incomplete_details": None, "metadata": None, "background": False,
            "usage": {
                "input_tokens": 6, "output_tokens": 3,
                "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 1}, "total_tokens": 9,
            },
        }
    ).encode()  # fmt: skip
    url = "/v1/responses"
    lines = [line(0, url=url, input="x"), line(1, url=url, input="x", store=False)]
    done = ended(sdk, start(sdk, lines, endpoint=url))
    kept, forgotten = (one["response"]["body"]["id"] for one in content(sdk, done.output_file_id))
    assert sdk.responses.retrieve(kept).id == kept
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(forgotten)
    assert done.usage is not None and done.usage.to_dict() == {
        "input_tokens": 12, "input_tokens_details": {"cached_tokens": 8}, "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 2}, "total_tokens": 18,
    }  # fmt: skip


def test_stored_chats_of_a_batch_are_kept(sdk: openai.OpenAI, upstream: Model) -> None:
    message = {"role": "assistant", "content": "Hello!", "refusal": None}
    choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": None}
    upstream.answer = json.dumps(
        {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": BASE, "choices": [choice]}
    ).encode()
    done = ended(sdk, start(sdk, [line(0, store=True, metadata={"from": "batch"})]))
    (answer,) = content(sdk, done.output_file_id)
    stored = sdk.chat.completions.retrieve(answer["response"]["body"]["id"])
    assert stored.metadata == {"from": "batch"}
