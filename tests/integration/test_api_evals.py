"""Evals through the official SDK: rows in, answered and graded, counts and results out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from shared import keys
from shared.store.client import Client
from tests.api_server import BASE, ApiServer, with_store
from tests.batch_requests import sdk_of, serve
from tests.eval_scene import EXACT, SCHEMA, Speaker, adds, asking, content, ended, items, jsonl, make_eval, rows
from tests.integration.test_api_limits import new_key, new_project


@pytest.fixture
def upstream() -> Iterator[Speaker]:
    with Speaker(says=adds) as server:
        yield server


@pytest.fixture
def sdk(api: ApiServer, redis_url: str, upstream: Speaker) -> openai.OpenAI:
    serve(redis_url, upstream)
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0, _strict_response_validation=True)


def test_evals_are_kept_changed_and_listed_in_either_order(sdk: openai.OpenAI) -> None:
    made = [make_eval(sdk, name=f"e{n}", metadata={"n": str(n)}) for n in range(3)]
    first, second, third = (one.id for one in made)
    assert (made[0].object, made[0].name, made[0].metadata) == ("eval", "e0", {"n": "0"})
    assert made[0].data_source_config.schema_["properties"]["item"] == SCHEMA
    assert "sample" in made[0].data_source_config.schema_["properties"]
    assert made[0].testing_criteria[0].to_dict() == EXACT
    assert sdk.evals.retrieve(first).to_dict() == made[0].to_dict()
    changed = sdk.evals.update(first, name="again", metadata=None)
    assert (changed.name, changed.metadata) == ("again", None)
    assert sdk.evals.update(first).name == "again", "what is left out stays"
    orders: list[tuple[dict[str, Any], list[str]]] = [
        ({}, [first, second, third]),
        ({"order": "desc"}, [third, second, first]),
        ({"order_by": "updated_at"}, [second, third, first]),
        ({"order_by": "updated_at", "order": "desc"}, [first, third, second]),
    ]
    for options, expected in orders:
        assert [one.id for one in sdk.evals.list(limit=1, **options)] == expected, options
    gone = sdk.evals.delete(second)
    assert gone.to_dict() == {"object": "eval.deleted", "deleted": True, "eval_id": second}
    assert [one.id for one in sdk.evals.list(after=second, limit=5)] == [third], "a deleted one is still a place"
    for lost in (lambda: sdk.evals.delete(second), lambda: sdk.evals.retrieve(second), lambda: sdk.evals.update("x")):
        with pytest.raises(openai.NotFoundError):
            lost()


CUSTOM = {"type": "custom", "item_schema": SCHEMA}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"testing_criteria": []}, "testing_criteria"),
        ({"testing_criteria": [EXACT, EXACT]}, "testing_criteria[1].name"),
        ({"testing_criteria": [{**EXACT, "operation": "maybe"}]}, "testing_criteria[0].operation"),
        ({"testing_criteria": [{**EXACT, "pass_threshold": 1}]}, "testing_criteria[0].pass_threshold"),
        (
            {
                "testing_criteria": [
                    {
                        "type": "text_similarity", "name": "n", "input": "a", "reference": "b",
                        "evaluation_metric": "bleu",
                    }
                ]
            },
            "testing_criteria[0].pass_threshold",
        ),
        (
            {"testing_criteria": [{"type": "multi", "graders": {"a": EXACT}, "calculate_output": "a"}]},
            "testing_criteria[0].type",
        ),
        ({"data_source_config": {"type": "table"}}, "data_source_config.type"),
        ({"data_source_config": {"type": "custom"}}, "data_source_config.item_schema"),
        ({"metadata": {"k": 1}}, "metadata"),
        ({"name": "n" * 257}, "name"),
        ({"surprise": 1}, "surprise"),
    ],
)  # fmt: skip
def test_wrong_evals_are_refused_by_the_name_of_the_field(api: ApiServer, changes: dict[str, Any], param: str) -> None:
    with api.client() as http:
        answer = http.post("/v1/evals", json={"data_source_config": CUSTOM, "testing_criteria": [EXACT], **changes})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_rows_are_graded_as_they_are(sdk: openai.OpenAI, upstream: Speaker) -> None:
    made = make_eval(sdk, EXACT, {**EXACT, "name": "has a digit", "operation": "like", "reference": "4"})
    given: list[dict[str, Any]] = [
        {"item": {"question": "2+2", "answer": "4"}, "sample": {"output_text": "4"}},
        {"item": {"question": "2+2", "answer": "4"}, "sample": {"choices": [{"message": {"content": "14"}}]}},
        {"item": {"question": "1+1", "answer": "2"}, "sample": {"output_text": "3", "model": "mine"}},
        {"item": {"question": "1+1", "answer": "2"}},
    ]
    run = sdk.evals.runs.create(made.id, data_source=jsonl(content(given)), name="by hand")
    assert (run.status, run.name, run.model, run.object) == ("queued", "by hand", "", "eval.run")
    assert run.data_source.to_dict() == {"type": "jsonl", "source": content(given)}
    done = ended(sdk, run)
    assert done.status == "completed" and (done.error.code, done.error.message) == ("", "")
    assert done.result_counts.to_dict() == {"total": 4, "passed": 1, "failed": 2, "errored": 1}
    assert [one.to_dict() for one in done.per_testing_criteria_results] == [
        {"testing_criteria": "exact", "passed": 1, "failed": 2},
        {"testing_criteria": "has a digit", "passed": 2, "failed": 1},
    ]
    assert done.per_model_usage == [] and upstream.received == []

    found = items(sdk, run)
    assert [(one.status, one.datasource_item_id) for one in found] == [
        ("pass", 0), ("fail", 1), ("fail", 2), ("error", 3),
    ]  # fmt: skip
    assert found[2].datasource_item == given[2]["item"] and found[2].sample.model == "mine"
    assert found[1].sample.output[0].to_dict() == {"role": "assistant", "content": "14"}
    assert [(one.name, one.score, one.passed) for one in found[1].results] == [
        ("exact", 0.0, False), ("has a digit", 1.0, True),
    ]  # fmt: skip
    assert {one.error["code"] for one in found[3].results} == {"invalid_variable_error"}


def test_a_model_answers_rows(sdk: openai.OpenAI, upstream: Speaker) -> None:
    upstream.says = lambda prompt: "I do not know" if "3 and 3" in prompt else adds(prompt)
    made = make_eval(sdk)
    source = asking(content(rows(5)), sampling_params={"temperature": 0.5, "max_completion_tokens": 9})
    done = ended(sdk, sdk.evals.runs.create(made.id, data_source=source, metadata={"k": "v"}))
    assert (done.status, done.model, done.metadata) == ("completed", BASE, {"k": "v"})
    assert done.result_counts.to_dict() == {"total": 5, "passed": 4, "failed": 1, "errored": 0}
    assert [one.to_dict() for one in done.per_model_usage] == [
        {
            "model_name": BASE, "invocation_count": 5, "prompt_tokens": 15, "completion_tokens": 10,
            "total_tokens": 25, "cached_tokens": 5,
        }
    ]  # fmt: skip
    asked = [json.loads(one.body) for one in upstream.received]
    assert {one.headers["x-vllm-priority"] for one in upstream.received} == {"1000"}
    assert {json.dumps({**one, "messages": 0}, sort_keys=True) for one in asked} == {
        json.dumps(
            {"max_completion_tokens": 9, "messages": 0, "model": BASE, "seed": 42, "temperature": 0.5, "top_p": 1.0}
        )
    }
    (failed,) = items(sdk, done, status="fail")
    assert failed.datasource_item_id == 3 and failed.results[0].score == 0
    assert failed.sample.input[0].to_dict() == {"role": "user", "content": "What is 3 and 3?"}
    assert failed.sample.output[0].content == "I do not know"
    shown = failed.sample.to_dict()
    assert {name: shown[name] for name in ("temperature", "top_p", "seed", "max_completion_tokens")} == {
        "temperature": 0.5, "top_p": 1.0, "seed": 42, "max_completion_tokens": 9,
    }  # fmt: skip
    assert (
        sdk.evals.runs.output_items.retrieve(failed.id, eval_id=made.id, run_id=done.id).to_dict() == failed.to_dict()
    )


def test_one_row_that_fails_does_not_stop_the_others(sdk: openai.OpenAI, upstream: Speaker) -> None:
    upstream.says = lambda prompt: None if "1 and 1" in prompt else adds(prompt)
    made = make_eval(sdk, config={"type": "custom", "item_schema": {"type": "object"}})
    given = [*rows(3), {"item": {"answer": "x"}}]
    done = ended(sdk, sdk.evals.runs.create(made.id, data_source=asking(content(given))))
    assert done.status == "completed"
    assert done.result_counts.to_dict() == {"total": 4, "passed": 2, "failed": 0, "errored": 2}
    refused, unasked = items(sdk, done, extra_query={"status": "error"})
    assert (refused.datasource_item_id, refused.results) == (1, [])
    assert refused.sample.error.message == "not now"
    assert (unasked.datasource_item_id, unasked.sample.error.code) == (3, "invalid_variable")
    assert len(upstream.received) == 3


def test_rows_of_a_file(api: ApiServer, sdk: openai.OpenAI) -> None:
    files = sdk_of(api).files  # OpenAI's own types know no file with this purpose
    made = make_eval(sdk)
    text = "\n".join(json.dumps(row) for row in rows(3)) + "\n\n"
    file = files.create(file=("rows.jsonl", text.encode()), purpose="evals")
    run = sdk.evals.runs.create(made.id, data_source=asking({"type": "file_id", "id": file.id}))
    files.delete(file.id)  # the run has its rows
    assert ended(sdk, run).result_counts.passed == 3

    for wrong, said in (
        ('{"item": {"question": "q", "answer": "a"}}\n{"item": {"question": 1, "answer": "a"}}', "line 2: 'item.quest"),
        ('{"items": {}}', "line 1: Unknown parameter: 'items'"),
        ("\n", "it has no rows"),
        ('{"item"', "line 1 is no valid JSON"),
    ):
        file = files.create(file=("rows.jsonl", wrong.encode()), purpose="evals")
        source = jsonl({"type": "file_id", "id": file.id})
        failed = ended(sdk, sdk.evals.runs.create(made.id, data_source=source))
        assert (failed.status, failed.error.code) == ("failed", "invalid_eval_file"), failed
        assert said in failed.error.message, failed.error.message


@pytest.mark.parametrize(
    ("source", "status", "param"),
    [
        ({"type": "jsonl", "source": content([])}, 400, "data_source.source.content"),
        (
            {"type": "jsonl", "source": content([{"item": {"question": "q"}}])}, 400,
            "data_source.source.content[0].item",
        ),
        ({"type": "jsonl", "source": content([{"sample": {}}])}, 400, "data_source.source.content[0].item"),
        ({"type": "jsonl", "source": {"type": "file_id", "id": "file-x"}}, 404, "data_source.source.id"),
        ({"type": "jsonl", "source": {"type": "file_id", "id": "../x"}}, 404, "data_source.source.id"),
        ({"type": "jsonl", "source": {"type": "stored_completions"}}, 400, "data_source.source.type"),
        (asking({"type": "stored_completions"}), 400, "data_source.source.type"),
        (asking(content(rows(1)), model="nobody"), 404, "data_source.model"),
        (asking(content(rows(1)), model=None), 400, "data_source.model"),
        (asking(content(rows(1)), input_messages=None), 400, "data_source.input_messages"),
        (
            asking(content(rows(1)), input_messages={"type": "item_reference", "item_reference": "sample.x"}), 400,
            "data_source.input_messages.item_reference",
        ),
        (
            asking(
                content(rows(1)),
                input_messages={"type": "template", "template": [{"role": "user", "content": "{{ sample.x }}"}]},
            ),
            400,
            "data_source.input_messages.template[0].content",
        ),
        (
            asking(
                content(rows(1)), input_messages={"type": "template", "template": [{"role": "user", "content": "{{ "}]}
            ),
            400,
            "data_source.input_messages.template[0].content",
        ),
        (asking(content(rows(1)), sampling_params={"temperature": 3}), 400, "data_source.sampling_params.temperature"),
        ({"type": "responses", "source": content(rows(1))}, 400, "data_source.type"),
        ({"type": "table"}, 400, "data_source.type"),
    ],
)  # fmt: skip
def test_wrong_runs_are_refused_by_the_name_of_the_field(
    api: ApiServer, sdk: openai.OpenAI, source: dict[str, Any], status: int, param: str
) -> None:
    made = make_eval(sdk)
    with api.client() as http:
        answer = http.post(f"/v1/evals/{made.id}/runs", json={"data_source": source})
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
        assert http.get(f"/v1/evals/{made.id}/runs").json()["data"] == []


def test_stored_completions_are_graded_and_asked_again(sdk: openai.OpenAI, upstream: Speaker) -> None:
    upstream.says = lambda prompt: prompt.upper()
    for n in range(4):
        team: str = "a" if n < 3 else "b"
        said: Any = [{"role": "user", "content": f"say {n}"}]
        sdk.chat.completions.create(model=BASE, store=True, metadata={"team": team}, messages=said)
    upstream.received.clear()
    loud = {**EXACT, "input": "{{ sample.output_text }}", "reference": "SAY", "operation": "like"}
    same = {**EXACT, "name": "same", "reference": "{{ item.output }}"}
    made = make_eval(sdk, loud, same, config={"type": "logs", "metadata": {"team": "a"}})
    assert made.data_source_config.type == "logs" and made.data_source_config.metadata == {"team": "a"}

    as_they_are: Any = {"type": "completions", "source": {"type": "stored_completions"}}
    stored = ended(sdk, sdk.evals.runs.create(made.id, data_source=as_they_are))
    assert stored.status == "completed", stored.error
    assert stored.result_counts.to_dict() == {"total": 3, "passed": 3, "failed": 0, "errored": 0}
    assert upstream.received == [] and stored.per_model_usage == []
    newest = items(sdk, stored)[0]
    assert newest.datasource_item["input"] == [{"role": "user", "content": "say 2"}]
    assert (newest.sample.output[0].content, newest.sample.usage.total_tokens) == ("SAY 2", 5)

    upstream.says = lambda prompt: prompt
    again: Any = {"type": "completions", "model": BASE, "source": {"type": "stored_completions", "limit": 2}}
    asked = ended(sdk, sdk.evals.runs.create(made.id, data_source=again))
    assert asked.result_counts.to_dict() == {"total": 2, "passed": 0, "failed": 2, "errored": 0}
    assert sorted(upstream.asked()) == ["say 1", "say 2"]

    for nothing in ({"metadata": {"team": "b"}}, {"model": "other"}, {"created_after": 5}):
        with pytest.raises(openai.BadRequestError, match="No stored chat completion"):
            source: Any = {"type": "completions", "source": {"type": "stored_completions", **nothing}}
            sdk.evals.runs.create(made.id, data_source=source)


def test_pages_of_rows_and_runs(sdk: openai.OpenAI) -> None:
    made = make_eval(sdk)
    given = [
        {**row, "sample": {"output_text": "0" if n % 3 else row["item"]["answer"]}} for n, row in enumerate(rows(7))
    ]
    source: Any = {"type": "jsonl", "source": content(given)}
    runs = [ended(sdk, sdk.evals.runs.create(made.id, data_source=source)) for _ in range(2)]
    run = runs[0]
    numbers = {
        "asc": [0, 1, 2, 3, 4, 5, 6], "desc": [6, 5, 4, 3, 2, 1, 0],
    }  # fmt: skip
    for order, expected in numbers.items():
        found = items(sdk, run, limit=2, order=order)
        assert [one.datasource_item_id for one in found] == expected
    assert [one.datasource_item_id for one in items(sdk, run, limit=1, status="pass")] == [0, 3, 6]
    last = items(sdk, run)[-1].id
    assert items(sdk, run, after=last) == []
    for wrong in (f"{last}0", last.replace(run.id.removeprefix("evalrun_"), "x"), "outputitem_", "x" * 500):
        with pytest.raises(openai.NotFoundError):
            items(sdk, run, after=wrong)
        with pytest.raises(openai.NotFoundError):
            sdk.evals.runs.output_items.retrieve(wrong, eval_id=made.id, run_id=run.id)

    assert [one.id for one in sdk.evals.runs.list(made.id, limit=1)] == [one.id for one in runs]
    assert [one.id for one in sdk.evals.runs.list(made.id, order="desc")] == [one.id for one in runs[::-1]]
    assert [one.id for one in sdk.evals.runs.list(made.id, status="completed", limit=1)] == [one.id for one in runs]
    assert list(sdk.evals.runs.list(made.id, status="canceled")) == []
    other = make_eval(sdk)
    with pytest.raises(openai.NotFoundError):
        sdk.evals.runs.retrieve(run.id, eval_id=other.id)
    assert sdk.evals.runs.delete(run.id, eval_id=made.id).to_dict() == {
        "object": "eval.run.deleted", "deleted": True, "run_id": run.id,
    }  # fmt: skip
    with pytest.raises(openai.NotFoundError):
        sdk.evals.runs.delete(run.id, eval_id=made.id)
    assert [one.id for one in sdk.evals.runs.list(made.id, after=run.id)] == [runs[1].id]


@pytest.mark.parametrize("path", ["", "/cancel"])
def test_a_run_is_cancelled_by_either_path(api: ApiServer, sdk: openai.OpenAI, upstream: Speaker, path: str) -> None:
    upstream.stuck = {"What is 1 and 1?"}
    made = make_eval(sdk)
    run = sdk.evals.runs.create(made.id, data_source=asking(content(rows(2))))
    with api.client() as http:
        url = f"/v1/evals/{made.id}/runs/{run.id}{path}"
        cancelled = http.post(url, headers={"content-type": "application/json"})
        assert (cancelled.status_code, cancelled.json()["status"]) == (200, "canceled"), cancelled.text
        assert http.post(url).json() == cancelled.json(), "twice is the same as once"
        done = ended(sdk, run)
        assert done.status == "canceled" and done.result_counts.passed <= 1
        assert [one.id for one in sdk.evals.runs.list(made.id, status="canceled")] == [run.id]
        completed = sdk.evals.runs.create(made.id, data_source=asking(content(rows(1))))
        assert ended(sdk, completed).status == "completed"
        refused = http.post(f"/v1/evals/{made.id}/runs/{completed.id}{path}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_run_state")


def test_deleting_an_eval_takes_its_runs_with_it(
    sdk: openai.OpenAI, upstream: Speaker, redis_url: str, api: ApiServer
) -> None:
    upstream.stuck = {"What is 0 and 0?"}
    made = make_eval(sdk)
    stuck = sdk.evals.runs.create(made.id, data_source=asking(content(rows(1))))
    ended(sdk, sdk.evals.runs.create(made.id, data_source=jsonl(content(rows(1)))))
    sdk.evals.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        sdk.evals.runs.retrieve(stuck.id, eval_id=made.id)
    with pytest.raises(openai.NotFoundError):
        sdk.evals.runs.create(made.id, data_source=jsonl(content(rows(1))))

    async def left(client: Client) -> list[bytes]:
        found = await client.call("KEYS", "selftune:*eval*")
        return [key for key in found if b":place:" not in key]

    assert with_store(redis_url, left) == []
    assert not api.paths.eval_folder(stuck.id).exists()
    assert keys.place(keys.eval_runs(made.id), stuck.id).startswith("selftune:place:")


def test_asking_twice_with_a_key_makes_one_eval_and_one_run(api: ApiServer, sdk: openai.OpenAI) -> None:
    body = {"data_source_config": CUSTOM, "testing_criteria": [EXACT]}
    run = {"data_source": {"type": "jsonl", "source": content(rows(1))}}
    with api.client() as http:
        first, second = (http.post("/v1/evals", json=body, headers={"idempotency-key": "k1"}) for _ in range(2))
        assert (first.status_code, second.status_code) == (201, 201) and first.json() == second.json()
        url = f"/v1/evals/{first.json()['id']}/runs"
        made = {http.post(url, json=run, headers={"idempotency-key": "k2"}).json()["id"] for _ in range(2)}
        assert made == {one["id"] for one in http.get(url).json()["data"]} and len(made) == 1


def test_what_a_run_holds_takes_its_projects_room(api: ApiServer, sdk: openai.OpenAI, upstream: Speaker) -> None:
    upstream.stuck = {"What is 0 and 0?"}
    own = sdk.with_options(api_key=new_key(api, new_project(api, storage_bytes=2000)))
    text = b"".join(json.dumps(row).encode() + b"\n" for row in rows(20))
    assert 1000 < len(text) < 1500

    def send() -> str:
        return own.files.create(file=("a.jsonl", text), purpose="evals").id

    def folders() -> set[str]:
        return {one.name for one in api.paths.evals.iterdir() if any(one.iterdir())}

    made, file, of_other_tests = make_eval(own), send(), folders()
    run = own.evals.runs.create(made.id, data_source=asking({"type": "file_id", "id": file}))
    own.files.delete(file)
    for too_much in (send, lambda: own.evals.runs.create(made.id, data_source=asking(content(rows(20))))):
        with pytest.raises(openai.RateLimitError) as refused:
            too_much()
        assert refused.value.code == "storage_limit_exceeded"
    assert [one.id for one in own.evals.runs.list(made.id)] == [run.id]
    assert folders() - of_other_tests == {run.id}
    own.evals.runs.cancel(run.id, eval_id=made.id)
    own.evals.runs.delete(run.id, eval_id=made.id)
    assert send()


JUDGE = {
    "type": "score_model", "name": "judge", "model": BASE, "range": [0, 10], "pass_threshold": 5,
    "input": [{"role": "user", "content": "Judge {{ item.question }} = {{ sample.output_text }}"}],
}  # fmt: skip


def test_answers_that_are_none_are_errors_of_their_rows_alone(sdk: openai.OpenAI) -> None:
    wrong: list[Any] = ["x", [1], [{"message": None}], [{"message": {"role": 1}}]]
    given = [{**row, "sample": {"choices": one}} for row, one in zip(rows(4), wrong, strict=True)]
    source: Any = {"type": "jsonl", "source": content([*given, {**rows(1)[0], "sample": {"output_text": "0"}}])}
    done = ended(sdk, sdk.evals.runs.create(make_eval(sdk).id, data_source=source))
    assert done.result_counts.to_dict() == {"total": 5, "passed": 1, "failed": 0, "errored": 4}
    assert [one.sample.error.code for one in items(sdk, done)] == ["unreadable_answer"] * 4 + [""]


def test_a_judge_that_is_busy_is_waited_for(sdk: openai.OpenAI, upstream: Speaker) -> None:
    upstream.says = lambda prompt: '{"steps": [], "result": 7}'
    upstream.statuses = [429, 503, 503]
    row = {**rows(1)[0], "sample": {"output_text": "0"}}
    source: Any = {"type": "jsonl", "source": content([row])}
    done = ended(sdk, sdk.evals.runs.create(make_eval(sdk, JUDGE).id, data_source=source))
    assert done.result_counts.to_dict() == {"total": 1, "passed": 1, "failed": 0, "errored": 0}


def test_a_run_whose_judge_is_not_there_is_refused(sdk: openai.OpenAI) -> None:
    made = make_eval(sdk, EXACT, {**JUDGE, "model": "nobody"})
    with pytest.raises(openai.NotFoundError) as refused:
        sdk.evals.runs.create(made.id, data_source=asking(content(rows(1))))
    assert (refused.value.code, refused.value.param) == ("model_not_found", "testing_criteria[1].model")


def test_a_run_needs_a_reward_model_where_it_says_one(api: ApiServer, sdk: openai.OpenAI) -> None:
    with api.client() as http:
        for model, status in (("nobody", 404), (BASE, 400)):
            criteria = [EXACT, {"type": "selftune_reward", "name": "taste", "model": model}]
            made = http.post("/v1/evals", json={"data_source_config": CUSTOM, "testing_criteria": criteria})
            refused = http.post(f"/v1/evals/{made.json()['id']}/runs", json={"data_source": asking(content(rows(1)))})
            assert (refused.status_code, refused.json()["error"]["param"]) == (status, "testing_criteria[1].model")


def test_judges_grade_and_what_they_cost_is_counted(sdk: openai.OpenAI, upstream: Speaker) -> None:
    said = {"0 and 0": '{"steps": [], "result": 9}', "1 and 1": '{"steps": [], "result": 2}', "2 and 2": "Fine."}
    upstream.says = lambda prompt: adds(prompt) if prompt.startswith("What") else said[prompt[6:13]]
    made = make_eval(sdk, JUDGE, EXACT)
    done = ended(sdk, sdk.evals.runs.create(made.id, data_source=asking(content(rows(3)))))
    assert done.result_counts.to_dict() == {"total": 3, "passed": 1, "failed": 1, "errored": 1}
    assert [one.to_dict() for one in done.per_testing_criteria_results] == [
        {"testing_criteria": "judge", "passed": 1, "failed": 1},
        {"testing_criteria": "exact", "passed": 3, "failed": 0},
    ]
    (usage,) = done.per_model_usage
    assert (usage.invocation_count, usage.total_tokens, usage.cached_tokens) == (6, 30, 6)
    found = items(sdk, done)
    assert [one.results[0].score for one in found] == [9, 2, 0]
    assert found[2].results[0].error["code"] == "model_grader_parse_error"
    assert found[2].results[1].passed, "what another criterion says stays"


def test_two_runs_are_compared_over_the_rows_that_both_have(
    api: ApiServer, sdk: openai.OpenAI, upstream: Speaker
) -> None:
    similar = {
        "type": "text_similarity", "name": "near", "evaluation_metric": "fuzzy_match", "pass_threshold": 0.0,
        "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}",
    }  # fmt: skip
    made = make_eval(sdk, EXACT, similar)

    def graded(right: int, given: list[dict[str, Any]]) -> str:
        answers = [
            {**row, "sample": {"output_text": row["item"]["answer"] if n < right else "x"}}
            for n, row in enumerate(given)
        ]
        source: Any = {"type": "jsonl", "source": content(answers)}
        return str(ended(sdk, sdk.evals.runs.create(made.id, data_source=source)).id)

    few, many, other = graded(10, rows(30)), graded(25, rows(31)), graded(5, rows(60)[30:])
    with api.client() as http:

        def compared(run: str, against: str, status: int = 200) -> dict[str, Any]:
            url = f"/v1/evals/{made.id}/runs/{run}/comparison"
            answer = http.get(url, params={"against": against})
            assert answer.status_code == status, answer.text
            found: dict[str, Any] = answer.json()
            return found

        better = compared(many, few)
        assert (better["verdict"], better["rows"], better["rows_left_out"]) == ("better", 30, 1)
        assert better["passing"] == {
            "passed": 25,
            "passed_in_other": 10,
            "only_here": 15,
            "only_in_other": 0,
            "p_value": pytest.approx(2 / 2**15),
        }
        exact, near = better["per_testing_criteria"]
        assert (exact["testing_criteria"], exact["verdict"]) == ("exact", "better")
        assert exact["scores"]["difference"] == pytest.approx(0.5)
        assert 0.3 < exact["scores"]["interval"][0] < 0.5 < exact["scores"]["interval"][1] < 0.7
        assert near["verdict"] == "better" and near["passing"]["p_value"] == 1, "all pass, and the scores differ"
        assert compared(few, many)["verdict"] == "worse"
        assert compared(few, few)["verdict"] == "no_difference_shown"
        assert compared(few, other, 400)["error"]["code"] == "nothing_to_compare"
        assert compared(few, "evalrun_x", 404)["error"]["param"] == "run_id"
        upstream.stuck = {"What is 0 and 0?"}
        under_way = sdk.evals.runs.create(made.id, data_source=asking(content(rows(1))))
        assert compared(few, under_way.id, 400)["error"]["param"] == "against"
        sdk.evals.runs.cancel(under_way.id, eval_id=made.id)
