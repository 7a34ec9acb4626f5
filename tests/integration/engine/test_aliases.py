"""Aliases over the real engine: moves wait for real adapters, and a shadow answers as its model does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.alias_scene import answered
from tests.api_server import ApiServer, wait_until
from tests.integration.engine.names import V1, V2, V3
from tests.integration.inference_stack import InferenceStack

TEXT = {"prompt": [20, 30, 40, 50], "max_tokens": 12, "temperature": 0}
MESSAGES: list[Any] = [{"role": "user", "content": "what is the capital of france?"}]
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("chat/completions", {"messages": MESSAGES, "max_tokens": 8, "temperature": 0}),
    ("completions", TEXT),
    ("responses", {"input": "what is the capital of france?", "max_output_tokens": 8, "temperature": 0}),
    ("messages", {"messages": MESSAGES, "max_tokens": 8, "temperature": 0}),
]


@pytest.fixture(scope="module")
def http(engine_api: ApiServer) -> Iterator[httpx2.Client]:
    with engine_api.client() as client:
        yield client


def text(http: httpx2.Client, model: str) -> tuple[str, str]:
    """Return the model that answered and what it said."""
    answer = answered(http.post("/v1/completions", json={"model": model, **TEXT}))
    return answer["model"], answer["choices"][0]["text"]


def moved(http: httpx2.Client, model: str) -> bool:
    """Move the alias; False when a busy machine did not load the adapter in time, where one tries again."""
    answer = http.post("/v1/aliases/bot", json={"model": model})
    if answer.status_code == 400 and answer.json()["error"]["code"] == "model_not_warm":
        return False
    assert answered(answer)["warm"] is True, "it was loaded before anybody was sent to it"
    return True


def shadowed(http: httpx2.Client, path: str, asked: dict[str, Any], *, answered_by: str) -> dict[str, Any]:
    """Ask until the shadow has answered, too, and return the pair: one that is not in memory just then is left out."""
    seen = {pair["id"] for pair in pairs(http)}

    def attempt() -> dict[str, Any] | None:
        answer = http.post(f"/v1/{path}", json={"model": "twin", **asked})
        assert (answer.status_code, answer.headers["x-selftune-model"]) == (200, answered_by)
        until = time.monotonic() + 3
        while time.monotonic() < until:
            if fresh := [pair for pair in pairs(http) if pair["id"] not in seen]:
                return fresh[0]
            time.sleep(0.05)
        return None

    return wait_until(attempt, timeout_s=60)


def pairs(http: httpx2.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = answered(http.get("/v1/aliases/twin/shadow_pairs"))["data"]
    return found


def test_moves_wait_for_the_adapter_and_no_answer_is_mixed(http: httpx2.Client) -> None:
    said = {model: text(http, model)[1] for model in (V1, V2, V3)}
    assert len(set(said.values())) == 3
    assert answered(http.post("/v1/aliases", json={"name": "bot", "model": V1}))["warm"] is True
    over = threading.Event()
    heard: list[tuple[str, str]] = []

    def ask() -> None:
        while not over.is_set():
            heard.append(text(http, "bot"))

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            for number in range(9):
                model = (V2, V3, V1)[number % 3]
                wait_until(lambda: moved(http, model), timeout_s=60)  # noqa: B023 - called at once
                wait_until(
                    lambda: asking.done() or (heard and heard[-1][0] == model),  # noqa: B023
                    timeout_s=60,
                )
        finally:
            over.set()
        asking.result()
    assert all(words == said[model] for model, words in heard) and {model for model, _ in heard} == {V1, V2, V3}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "fields"), REQUESTS)
def test_a_shadow_on_the_same_engine_answers_as_when_asked_itself(
    stack: InferenceStack, http: httpx2.Client, path: str, fields: dict[str, Any], stream: bool
) -> None:
    http.delete("/v1/aliases/twin")
    answered(http.post("/v1/aliases", json={"name": "twin", "model": V1}))
    answered(http.post("/v1/aliases/twin", json={"shadow": {"model": V2, "percent": 100}}))
    wait_until(lambda: {V1, V2} <= set(stack.replicas()[0].resident), timeout_s=60)
    asked = {**fields, "stream": stream}
    first = shadowed(http, path, asked, answered_by=V1)
    assert first["shadow"]["error"] is None and first["answer"]["text"] and first["shadow"]["text"]
    answered(http.post("/v1/aliases/twin", json={"model": V2, "shadow": {"model": V1, "percent": 100}}))
    second = shadowed(http, path, asked, answered_by=V2)
    assert [first[side]["text"] for side in ("answer", "shadow")] == [
        second[side]["text"] for side in ("shadow", "answer")
    ]
    if not stream:
        most = fields.get("max_tokens", fields.get("max_output_tokens"))
        assert all(0 < first[side]["output_tokens"] <= most for side in ("answer", "shadow"))


def test_a_gate_and_a_monitor_look_at_what_the_engine_says(http: httpx2.Client) -> None:
    """Models of random weights answer three rows, too few to call one worse; then the new one's answers are graded."""
    criterion = {"type": "string_check", "name": "says nothing", "input": "{{ sample.output_text }}"}
    criterion |= {"operation": "ne", "reference": ""}
    config = {"type": "custom", "item_schema": {"type": "object"}}
    made = http.post("/v1/evals", json={"data_source_config": config, "testing_criteria": [criterion]})
    source = {"type": "file_content", "content": [{"item": {"n": str(n)}} for n in range(3)]}
    template = {"type": "template", "template": [{"role": "user", "content": "count to {{ item.n }}"}]}
    data = {"type": "completions", "source": source, "input_messages": template}
    gate = {
        "eval_id": made.json()["id"],
        "data_source": data | {"sampling_params": {"max_completion_tokens": 4}},
        "criteria": {"min_pass_rate": 0.0, "against_current": "not_worse"},
    }
    answered(http.post("/v1/aliases", json={"name": "gated", "model": V1, "wait_warm": False}))
    answered(
        http.post("/v1/aliases/gated", json={"gate": gate, "monitor": {"sample_rate": 1.0, "graders": [criterion]}})
    )

    def promoted() -> dict[str, Any] | None:
        promotion = http.post("/v1/aliases/gated/promotions", json={"model": V2}).json()["id"]
        path = f"/v1/aliases/gated/promotions/{promotion}"
        found = wait_until(
            lambda: (p := answered(http.get(path)))["status"] in ("completed", "failed") and p, timeout_s=90
        )
        assert found and (found["outcome"] or found["error"]["code"] == "model_not_warm"), found
        return found if found["outcome"] else None  # a busy machine may not load the adapter in time

    found = wait_until(promoted, timeout_s=120)
    assert found and (found["outcome"], found["figures"]["rows"]) == ("promoted", 3)
    asked = {"model": "gated", "messages": MESSAGES, "max_tokens": 4, "temperature": 0}
    said = answered(http.post("/v1/chat/completions", json=asked))["choices"][0]["message"]["content"]
    streamed = http.post("/v1/chat/completions", json={**asked, "stream": True})
    assert streamed.status_code == 200 and "[DONE]" in streamed.text
    kept = f"/v1/chat/completions?metadata[selftune_alias]=gated&model={V2}"
    stored = wait_until(lambda: len(s := answered(http.get(kept))["data"]) == 2 and s, timeout_s=30) or []
    assert [one["choices"][0]["message"]["content"] for one in stored] == [said] * 2
    quality = wait_until(lambda: (q := answered(http.get("/v1/aliases/gated/quality")))["due_samples"] == 0 and q)
    assert quality and quality["baseline"]["scores"][0]["mean"] == float(said != "")
