"""Requests to aliases: everywhere a model is named, under moves, with canary, shadow and limits."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from shared.store.client import Client
from shared.store.presence import Presence
from shared.store.registry import Registry
from tests.alias_scene import MESSAGES, OTHER_BASE, V1, V2, Scene, answered, scene
from tests.api_server import BASE, ApiServer, make_replica, wait_until, with_store
from tests.fakes.upstream import Upstream

ANSWERED_BY = "x-selftune-model"
BROKEN = b'{"error": {"message": "out of memory", "type": "x", "code": 500}}'
WRONG = b'{"error": {"message": "bad temperature", "type": "x", "code": 400}}'
COMPLETION = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": V1, "service_tier": None,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello!", "refusal": None}, "logprobs": None,
                 "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}  # fmt: skip
PART: dict[str, Any] = {"type": "output_text", "text": "Hello!", "annotations": [], "logprobs": None}
RESPONSE = {
    "id": "resp_upstream", "object": "response", "created_at": 1, "model": V1, "status": "completed",
    "output": [{"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [PART]}],
    "incomplete_details": None, "instructions": None, "metadata": None, "parallel_tool_calls": True,
    "temperature": 1.0, "tool_choice": "none", "tools": [], "top_p": 1.0, "text": None,
}  # fmt: skip


@pytest.fixture
def bots(api: ApiServer, redis_url: str) -> Iterator[Scene]:
    with scene(api, redis_url) as found:
        yield found


def models_asked(upstream: Upstream) -> list[str]:
    return [json.loads(received.body)["model"] for received in upstream.received]


def test_an_alias_is_a_model_everywhere(bots: Scene) -> None:
    bots.alias()
    bots.first.answer = json.dumps(COMPLETION).encode()
    whole = bots.sdk.chat.completions.with_raw_response.create(model="bot", messages=MESSAGES, store=True)
    assert whole.headers[ANSWERED_BY] == V1
    completion = whole.parse()
    assert (completion.model, completion.choices[0].message.content) == (V1, "Hello!"), "the model's own name is shown"
    assert [kept.id for kept in bots.sdk.chat.completions.list(model=V1)] == [completion.id]
    stream = bots.sdk.chat.completions.create(model="bot", messages=MESSAGES, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hello!"
    bots.first.answer = b""
    assert bots.sdk.completions.create(model="bot", prompt="Once").choices[0].text == "Hello!"
    message = bots.http.post("/v1/messages", json={"model": "bot", "messages": MESSAGES, "max_tokens": 5})
    assert (message.status_code, message.headers[ANSWERED_BY]) == (200, V1)
    bots.first.answer = json.dumps(RESPONSE).encode()
    response = bots.sdk.responses.create(model="bot", input="hi")
    assert response.output_text == "Hello!" and bots.sdk.responses.retrieve(response.id).id == response.id
    assert models_asked(bots.first) == [V1] * 5 and not bots.second.received


def test_the_model_that_answered_is_named_without_an_alias_too(bots: Scene) -> None:
    assert bots.ask(BASE).headers[ANSWERED_BY] == BASE
    assert ANSWERED_BY not in bots.ask("nobody").headers
    assert ANSWERED_BY not in bots.http.get("/v1/models").headers


def test_a_batch_asks_an_alias(bots: Scene) -> None:
    bots.alias(canary={"model": V2, "percent": 50})
    lines = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for n, body in enumerate([{"model": "bot", "messages": MESSAGES}] * 40)
    ]
    data = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    source = bots.sdk.files.create(file=("batch.jsonl", data), purpose="batch")
    batch = bots.sdk.batches.create(input_file_id=source.id, endpoint="/v1/chat/completions", completion_window="24h")
    done = wait_until(lambda: _completed(bots, batch.id))
    assert done.request_counts.completed == 40
    by_model = Counter(models_asked(bots.first) + models_asked(bots.second))
    assert by_model[V1] + by_model[V2] == 40 and min(by_model.values()) >= 5, "requests without a user are drawn alone"


def _completed(bots: Scene, batch_id: str) -> Any:
    found = bots.sdk.batches.retrieve(batch_id)
    return found if found.status == "completed" else None


def test_a_job_goes_on_from_an_aliass_model(bots: Scene) -> None:
    bots.alias()
    rows = [json.dumps({"messages": [*MESSAGES, {"role": "assistant", "content": "x"}]})] * 10
    file = bots.sdk.files.create(file=("a.jsonl", "\n".join(rows).encode()), purpose="fine-tune")
    assert bots.sdk.fine_tuning.jobs.create(model="bot", training_file=file.id).model == V1


def test_moves_under_load_lose_and_mix_nothing(bots: Scene) -> None:
    bots.alias()

    async def run() -> list[tuple[int, str, set[str], str]]:
        headers = {"authorization": f"Bearer {bots.api.key}"}
        async with httpx2.AsyncClient(base_url=bots.api.url, headers=headers, trust_env=False, timeout=60) as http:

            async def ask(number: int) -> tuple[int, str, set[str], str]:
                body = {"model": "bot", "messages": MESSAGES, "stream": bool(number % 2)}
                answer = await http.post("/v1/chat/completions", json=body)
                chunks = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
                found = [json.loads(chunk) for chunk in chunks] if number % 2 else [answer.json()]
                texts = [one["choices"][0].get("message", one["choices"][0].get("delta"))["content"] for one in found]
                return (
                    answer.status_code, answer.headers[ANSWERED_BY], {one["model"] for one in found}, "".join(texts),
                )  # fmt: skip

            async def load() -> list[tuple[int, str, set[str], str]]:
                return [await ask(number) for number in range(40)]

            async def move() -> None:
                for number in range(30):
                    moved = await http.post("/v1/aliases/bot", json={"model": (V2, V1)[number % 2]})
                    assert moved.status_code == 200, moved.text

            loads, _ = await asyncio.gather(asyncio.gather(*(load() for _ in range(6))), move())
            return [one for answers in loads for one in answers]

    answers = asyncio.run(run())
    assert len(answers) == 240
    for status, named, models, text in answers:
        assert (status, models, text) == (200, {named}, "Hello!")
    assert {named for _, named, _, _ in answers} == {V1, V2}
    assert bots.shown()["revision"] == 31


def test_a_canary_answers_its_share_and_always_the_same_users(bots: Scene) -> None:
    bots.alias(canary={"model": V2, "percent": 25})

    def share() -> dict[str, str]:
        return {f"u{number}": bots.ask(user=f"u{number}").headers[ANSWERED_BY] for number in range(120)}

    first = share()
    assert share() == first
    assert 12 <= list(first.values()).count(V2) <= 50, "30 of 120 expected"
    assert len({bots.ask().headers[ANSWERED_BY] for _ in range(10)}) == 1, "one key, one model"
    bots.change(canary={"model": V2, "percent": 60})
    later = share()
    assert {user for user, model in first.items() if model == V2} < {
        user for user, model in later.items() if model == V2
    }
    promoted = bots.change(path="/promote", reason="fine")
    assert (promoted["model"], promoted["previous_model"], promoted["canary"]) == (V2, V1, None)
    assert {bots.ask(user=f"u{number}").headers[ANSWERED_BY] for number in range(20)} == {V2}
    assert bots.shown(path="/history")["data"][0]["action"] == "promoted"


def test_a_canary_without_a_server_is_passed_over(bots: Scene) -> None:
    bots.alias(canary={"model": V2, "percent": 99.9})
    with_store(bots.redis_url, lambda client: Presence(client).forget_replica("second"))
    assert [bots.ask(user=f"u{number}").headers[ANSWERED_BY] for number in range(5)] == [V1] * 5
    wait_until(lambda: bots.traffic(V2)["errors"] == 5)
    with_store(bots.redis_url, lambda client: Registry(client).retire(V2))
    assert bots.ask(user="u1").headers[ANSWERED_BY] == V1, "nor is one that is gone asked"


def test_statistics_of_an_alias(bots: Scene) -> None:
    bots.alias(canary={"model": V2, "percent": 50})
    assert [one["role"] for one in bots.shown(path="/traffic")["data"]] == ["target", "canary"]
    users = [f"u{number}" for number in range(30)]
    mine = [bots.ask(user=user, stream=user == "u1").headers[ANSWERED_BY] for user in users].count(V1)
    found = wait_until(lambda: (one := bots.traffic(V1))["requests"] == mine and one)
    assert (found["errors"], found["refused"], found["abandoned"], found["error_rate"]) == (0, 0, 0, 0)
    assert found["first_byte_ms"]["p50"] <= found["total_ms"]["p95"] <= found["total_ms"]["p99"] < 60_000
    assert found["output_tokens"] in (2 * mine, 2 * mine - 2), "the stream has no usage"
    bots.first.status, bots.first.error = 400, WRONG
    bots.change(model=BASE, canary=None)
    assert bots.ask().status_code == 400
    wait_until(lambda: bots.traffic(BASE)["refused"] == 1)
    roles = {one["id"]: one["role"] for one in bots.shown(path="/traffic", window_s=60)["data"]}
    assert roles == {BASE: "target", V1: "former", V2: "former"}
    assert bots.traffic(BASE)["requests"] == 0, "a wrong request is not the model's"


def test_times_of_requests_that_let_others_pass_do_not_count(bots: Scene) -> None:
    bots.alias()
    assert bots.ask(priority=5).status_code == 200
    found = wait_until(lambda: (one := bots.traffic(V1))["requests"] == 1 and one)
    assert (found["first_byte_ms"], found["total_ms"], found["output_tokens"]) == (None, None, 2)


def test_a_client_that_leaves_is_no_failure(bots: Scene) -> None:
    bots.alias()
    bots.first.behaviour = "silent"
    with pytest.raises(httpx2.ReadTimeout):
        bots.http.post("/v1/chat/completions", json={"model": "bot", "messages": MESSAGES}, timeout=0.5)
    wait_until(lambda: bots.traffic(V1)["abandoned"] == 1)
    bots.first.behaviour = "cut"
    assert bots.ask().status_code == 502
    wait_until(lambda: (bots.traffic(V1)["requests"], bots.traffic(V1)["errors"]) == (1, 1))


def test_a_failing_canary_is_taken_out(bots: Scene) -> None:
    limits = {"max_error_rate": 0.2, "min_requests": 10, "window_s": 60}
    bots.alias(canary={"model": V2, "percent": 99, "limits": limits})
    bots.second.status, bots.second.error = 400, WRONG
    assert {bots.ask(user=f"u{number}").status_code for number in range(20)} <= {400, 200}
    bots.second.status, bots.second.error = 500, BROKEN
    statuses = Counter(bots.ask(user=f"u{number}").status_code for number in range(12))
    assert statuses[502] >= 10
    wait_until(lambda: bots.shown()["canary"] is None)
    shown, entry = bots.shown(), bots.shown(path="/history")["data"][0]
    assert (shown["model"], entry["action"], entry["automatic"], entry["key_id"]) == (V1, "canary_removed", True, None)
    assert "failed, 100.0%, where max_error_rate is 20.0%" in entry["reason"], entry["reason"]
    assert {bots.ask(user=f"u{number}").status_code for number in range(12)} == {200}
    assert "alias.limit_crossed" in bots.api.log.read_text()
    bots.second.status, bots.second.error = 200, b""
    bots.change(canary={"model": V2, "percent": 99, "limits": limits})
    assert {bots.ask(user=f"u{number}").status_code for number in range(12)} == {200}
    time.sleep(1.2)
    assert bots.shown()["canary"] is not None, "what it did before it was taken out is not held against it"


def test_a_slow_canary_is_taken_out(bots: Scene) -> None:
    limits = {"max_p95_total_ms": 300, "min_requests": 4, "window_s": 60}
    bots.alias(canary={"model": V2, "percent": 99.9, "limits": limits})
    bots.second.pause_s = 0.3
    for number in range(5):
        assert bots.ask(user=f"u{number}", stream=True).status_code == 200
    wait_until(lambda: bots.shown()["canary"] is None)
    assert "where max_p95_total_ms is 300" in bots.shown(path="/history")["data"][0]["reason"]


def test_a_failing_move_is_undone_while_it_is_watched(bots: Scene) -> None:
    limits = {"max_error_rate": 0.2, "min_requests": 5, "window_s": 60}
    bots.alias(watch={"limits": limits, "duration_s": 600})
    bots.change(model=V2)
    bots.second.status, bots.second.error = 500, BROKEN
    assert [bots.ask().status_code for _ in range(6)] == [502] * 6
    wait_until(lambda: bots.shown()["model"] == V1)
    entry = bots.shown(path="/history")["data"][0]
    assert (entry["action"], entry["automatic"], entry["previous_model"]) == ("rolled_back", True, V2)
    assert "6 of 6 requests within 60 s failed" in entry["reason"]
    status, code, param, message = bots.refused("/v1/aliases/bot/rollback")
    assert (status, code, param) == (400, "nothing_to_roll_back", None), "it is back already"
    assert f"would point it to '{V2}' again" in message
    assert f"'expected_revision': {bots.shown()['revision']}" in message
    bots.first.status, bots.first.error = 500, BROKEN
    assert [bots.ask().status_code for _ in range(6)] == [502] * 6
    time.sleep(1.2)
    assert bots.shown()["model"] == V1, "the way back is not undone"


def test_a_watched_move_whose_former_model_is_gone_stays(bots: Scene) -> None:
    bots.alias(watch={"limits": {"max_error_rate": 0.2, "min_requests": 5}, "duration_s": 600})
    bots.change(model=V2)
    with_store(bots.redis_url, lambda client: Registry(client).retire(V1))
    bots.second.status, bots.second.error = 500, BROKEN
    assert [bots.ask().status_code for _ in range(6)] == [502] * 6
    entry = wait_until(lambda: (one := bots.shown(path="/history")["data"][0])["action"] == "watch_ended" and one)
    assert entry["model"] == V2 and f"'{V1}' is gone, so the alias stays" in entry["reason"]


def pairs(bots: Scene, number: int) -> list[dict[str, Any]]:
    """Wait for so many pairs and return them, newest first."""
    found: list[dict[str, Any]] = wait_until(
        lambda: len(data := bots.shown(path="/shadow_pairs", limit=100)["data"]) == number and data
    )
    return found


def test_nothing_is_kept_without_a_shadow(bots: Scene) -> None:
    bots.alias()
    assert bots.ask().status_code == 200
    time.sleep(0.7)
    assert bots.shown(path="/shadow_pairs")["data"] == [] and not bots.second.received


def test_a_shadow_answers_too_and_both_answers_are_kept(bots: Scene) -> None:
    bots.alias(shadow={"model": V2, "percent": 100})
    whole = bots.ask(user="u", seed=7)
    assert whole.json()["model"] == V1
    (pair,) = pairs(bots, 1)
    assert (pair["object"], pair["endpoint"]) == ("alias.shadow_pair", "/v1/chat/completions")
    assert pair["request_id"] == whole.headers["x-request-id"]
    assert pair["request"] == {"model": "bot", "messages": MESSAGES, "user": "u", "seed": 7}
    for side, model in ((pair["answer"], V1), (pair["shadow"], V2)):
        assert (side["model"], side["text"], side["error"]) == (model, "Hello!", None)
        assert (side["input_tokens"], side["output_tokens"]) == (3, 2)
        assert 0 < side["first_byte_ms"] <= side["total_ms"]
    (shadowed,) = bots.second.received
    assert shadowed.headers["x-vllm-priority"] == "2000"
    assert shadowed.headers["x-request-id"] != whole.headers["x-request-id"]
    assert bots.ask(stream=True).status_code == 200
    newest = pairs(bots, 2)[0]
    assert (newest["answer"]["text"], newest["shadow"]["text"]) == ("Hello!", "Hello!")
    page = bots.shown(path="/shadow_pairs", limit=1)
    assert page["has_more"] and page["data"] == [newest]
    assert bots.shown(path="/shadow_pairs", after=page["last_id"])["data"] == [pair]
    assert bots.refused("/v1/aliases/bot/shadow_pairs?after=x", "GET")[:3] == (404, None, "after")
    assert bots.shown(path="/traffic")["data"][1]["role"] == "shadow"
    wait_until(lambda: bots.traffic(V2)["shadowed"] == 2)
    assert bots.traffic(V2)["requests"] == 0
    assert answered(bots.http.delete("/v1/aliases/bot/shadow_pairs"))["deleted"]
    assert bots.shown(path="/shadow_pairs")["data"] == []


def test_responses_and_their_shadows_have_ids_of_their_own(bots: Scene) -> None:
    bots.alias(shadow={"model": V2, "percent": 100})
    bots.first.answer = bots.second.answer = json.dumps(RESPONSE).encode()
    assert bots.sdk.responses.create(model="bot", input="hi").output_text == "Hello!"
    (pair,) = pairs(bots, 1)
    assert (pair["answer"]["text"], pair["shadow"]["text"]) == ("Hello!", "Hello!")
    assert "request_id" in json.loads(bots.first.received[0].body)
    assert "request_id" not in json.loads(bots.second.received[0].body)


def test_a_shadow_neither_delays_nor_fails_an_answer(bots: Scene) -> None:
    bots.alias(shadow={"model": V2, "percent": 100, "max_in_flight": 2})
    bots.second.behaviour = "silent"
    started = time.monotonic()
    assert [bots.ask().json()["model"] for _ in range(6)] == [V1] * 6
    assert time.monotonic() - started < 5
    wait_until(lambda: bots.traffic(V2)["shadow_skipped"] == 4)
    assert len(bots.second.received) == 2, "no more at a time than the alias allows"


def test_a_shadow_that_fails_is_kept_with_the_reason(bots: Scene) -> None:
    bots.alias(shadow={"model": V2, "percent": 100, "keep_pairs": 3})
    bots.second.status, bots.second.error = 500, BROKEN
    assert bots.ask().status_code == 200
    (pair,) = pairs(bots, 1)
    assert pair["answer"]["error"] is None and "failed on this request" in pair["shadow"]["error"]
    for _ in range(4):
        assert bots.ask().status_code == 200
    wait_until(lambda: bots.traffic(V2)["shadowed"] == 5)
    assert len(pairs(bots, 3)) == 3, "the oldest went"
    bots.first.status, bots.first.error = 400, WRONG
    assert bots.ask().status_code == 400
    bots.change(shadow=None)
    bots.first.status, bots.first.error = 200, b""
    assert bots.ask().status_code == 200
    time.sleep(0.7)
    assert len(pairs(bots, 3)) == 3, "a refused request has no pair, and without a shadow there is none"


@pytest.mark.parametrize("fields", [{"resident": []}, {"max_running": 4, "running": 2}, {"state": "draining"}])
def test_a_shadow_that_would_keep_others_waiting_is_left_out(bots: Scene, fields: dict[str, Any]) -> None:
    bots.alias(shadow={"model": V2, "percent": 100})
    second: dict[str, Any] = {"id": "second", "base": OTHER_BASE, "resident": [V2]}
    replica = make_replica(bots.second.url, **(second | fields))
    with_store(bots.redis_url, lambda client: Presence(client).beat_replica(replica, ttl_s=60))
    assert bots.ask().status_code == 200
    wait_until(lambda: bots.traffic(V2)["shadow_skipped"] == 1)
    assert bots.shown(path="/shadow_pairs")["data"] == [] and not bots.second.received


def test_pairs_are_for_keys_that_may_use_both_models(bots: Scene) -> None:
    key_id, key = bots.plain_key()
    bots.alias(shadow={"model": V2, "percent": 100})
    for _ in range(3):
        assert bots.ask().status_code == 200
    assert len(pairs(bots, 3)) == 3
    with bots.api.client(key) as other:

        def seen() -> int:
            page = answered(other.get("/v1/aliases/bot/shadow_pairs", params={"limit": 2}))
            rest = answered(other.get("/v1/aliases/bot/shadow_pairs", params={"limit": 2, "after": page["last_id"]}))
            assert page["has_more"] == bool(page["data"])
            return len(page["data"]) + len(rest["data"]) if page["data"] else 0

        assert seen() == 3
        bots.allow(V2)
        assert seen() == 0 and len(pairs(bots, 3)) == 3
        bots.allow(V2, key_id)
        assert seen() == 3


def test_several_api_processes_count_together(bots: Scene, tmp_path: Any) -> None:
    limits = {"max_error_rate": 0.2, "min_requests": 8, "window_s": 60}
    bots.alias(watch={"limits": limits, "duration_s": 600})
    bots.change(model=V2)
    bots.second.status, bots.second.error = 500, BROKEN
    other = ApiServer(tmp_path, bots.redis_url, organization="acme")
    try:
        with other.client(bots.api.key) as http:
            for _ in range(4):
                assert bots.ask().status_code == 502
                body = {"model": "bot", "messages": MESSAGES}
                assert http.post("/v1/chat/completions", json=body).status_code == 502
        wait_until(lambda: bots.shown()["model"] == V1)
    finally:
        other.stop()
    actions = [one["action"] for one in bots.shown(path="/history")["data"]]
    assert actions == ["rolled_back", "moved", "configured", "created"], "one of the two has done it"


def test_a_ready_server_of_the_target_is_all_that_an_alias_needs(bots: Scene) -> None:
    bots.alias()

    async def swap(client: Client) -> None:
        presence = Presence(client)
        await presence.forget_replica("first")
        await presence.beat_replica(make_replica(bots.second.url, id="third", base=OTHER_BASE), ttl_s=60)

    with_store(bots.redis_url, swap)
    refused = bots.ask()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_not_ready")
    assert bots.change(model=OTHER_BASE)["warm"] is True
    assert bots.ask().headers[ANSWERED_BY] == OTHER_BASE
