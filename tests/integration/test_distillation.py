"""Distillations from end to end, with a model that answers by the prompt and a job that the test brings to its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from msgspec.structs import replace

from shared import keys
from shared.distillation_records import KIND
from shared.settings import JudgeEndpoint
from shared.states import JobState
from shared.store.client import Client
from shared.store.jobs import JobStore
from shared.store.registry import Registry
from tests.api_server import BASE, ApiServer, know_key, make_adapter, make_base, wait_until, with_store
from tests.batch_requests import prompt_of, serve
from tests.eval_scene import EXACT, Speaker, adds, content, rows, spoken

STUDENT = f"ft:{BASE}:acme:student:AbCdEfGh"
OUTPUT_IS_KEY = {**EXACT, "reference": "{{ item.metadata.answer }}", "name": "right"}
Launch = Callable[..., ApiServer]


@dataclass
class Several(Speaker):
    """Answers a sum rightly, but as `wrong` says where the base is asked once the student is there."""

    wrong: set[str] = field(default_factory=set)

    def _whole(self, request: dict[str, Any]) -> bytes:
        answer = "7" if request["model"] in self.wrong else adds(prompt_of(request))
        return spoken(request["model"], answer)


@pytest.fixture
def url(valkey_folder: Path) -> str:
    """URL of an empty database that the API process of other tests does not look into."""
    url = f"unix://{valkey_folder / 'valkey.sock'}?db=4"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def upstream(url: str) -> Iterator[Several]:
    with Several() as server:
        serve(url, server)
        yield server


@pytest.fixture
def launch(url: str, tmp_path: Path) -> Iterator[Launch]:
    """Start API processes on one data folder."""
    with ExitStack() as stack:

        def start_one(**settings: Any) -> ApiServer:
            server = ApiServer(tmp_path / "home", url, lease_ttl_s=2, **settings)
            stack.callback(server.stop)
            know_key(url, server.key)
            return server

        yield start_one


def answered(answer: httpx2.Response, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    return answer.json()


def look(http: httpx2.Client, flow_id: str) -> Any:
    return answered(http.get(f"/v1/distillations/{flow_id}"))


def reached(http: httpx2.Client, flow_id: str, stage: str, *, timeout_s: float = 30) -> Any:
    """Wait until a stage is in progress, or `end`; returns the distillation."""

    def there() -> Any:
        found = look(http, flow_id)
        begun = [one["name"] for one in found["stages"] if one["status"] == "in_progress"]
        at = "end" if found["ended_at"] else next(iter(begun), "")
        return found if at == stage and (stage != "training" or found["job_id"]) else None

    return wait_until(there, timeout_s=timeout_s)


def succeed(url: str, job_id: str) -> None:
    """Do what a trainer does: publish the model, and end the job."""

    async def end(client: Client) -> None:
        await Registry(client).publish(make_adapter(STUDENT, job_id=job_id))
        jobs = JobStore(client)
        for status in (JobState.QUEUED, JobState.RUNNING):
            await jobs.update(job_id, lambda job, to=status: replace(job, status=to), [])  # type: ignore[misc]
        done = {"status": JobState.SUCCEEDED, "fine_tuned_model": STUDENT, "trained_tokens": 99}
        await jobs.update(job_id, lambda job: replace(job, **done), [])

    with_store(url, end)


def lines_of(http: httpx2.Client, file_id: str) -> list[Any]:
    return [json.loads(line) for line in http.get(f"/v1/files/{file_id}/content").text.splitlines()]


def store(http: httpx2.Client, number: int, *, answer: str) -> str:
    messages = [{"role": "user", "content": f"What is {number} and {number}?"}]
    body = {"model": BASE, "messages": messages, "store": True, "metadata": {"task": "sums", "answer": answer}}
    return str(answered(http.post("/v1/chat/completions", json=body))["id"])


def test_stored_answers_become_a_student_that_is_compared(api: ApiServer, redis_url: str) -> None:
    with Several() as upstream, api.client() as http:
        serve(redis_url, upstream)
        numbers = [*range(30), 3]
        stored = [store(http, one, answer=str(2 * one) if one < 25 else "wrong") for one in numbers]
        wanted = {
            "name": "sums",
            "source": {"type": "stored_completions", "metadata": {"task": "sums"}},
            "filter": {"minimum_scores": {"right": 1}},
            "student": {"model": BASE, "suffix": "sums", "hyperparameters": {"n_epochs": 2}},
            "graders": [OUTPUT_IS_KEY],
            "evaluation": {"held_out": 0.4},
        }
        key = {"idempotency-key": "once"}
        made = answered(http.post("/v1/distillations", json=wanted, headers=key), 201)
        assert answered(http.post("/v1/distillations", json=wanted, headers=key), 201)["id"] == made["id"]
        found = reached(http, made["id"], "training")
        assert found["counts"] == {
            "found": 31, "dropped": {"duplicate": 1, "low_score": 5}, "training": 15, "held_out": 10,
        }  # fmt: skip
        job = answered(http.get(f"/v1/fine_tuning/jobs/{found['job_id']}"))
        assert (job["training_file"], job["user_provided_suffix"]) == (found["files"]["training"], "sums")
        assert job["method"]["supervised"]["hyperparameters"]["n_epochs"] == 2
        assert job["metadata"] == {"distillation_id": made["id"]}
        training = lines_of(http, found["files"]["training"])
        assert len(training) == 15 and [one["role"] for one in training[0]["messages"]] == ["user", "assistant"]
        head, *fates = lines_of(http, found["files"]["manifest"])
        assert head["counts"] == found["counts"] and head["source"]["metadata"] == {"task": "sums"}
        assert [one["id"] for one in fates] == stored[::-1], "every completion has its line"

        upstream.wrong = {BASE}
        succeed(redis_url, found["job_id"])
        done = reached(http, made["id"], "end")
        assert (done["status"], done["fine_tuned_model"], done["trained_tokens"]) == ("completed", STUDENT, 99)
        assert [one["status"] for one in done["stages"]] == ["completed"] * 5
        assert all(one["started_at"] <= one["ended_at"] for one in done["stages"])
        assert {run["role"]: run["result_counts"]["passed"] for run in done["runs"]} == {
            "candidates": 25, "teacher": 10, "base": 0, "student": 10,
        }  # fmt: skip
        comparisons = done["comparisons"]
        assert comparisons["base"]["verdict"] == "better" and comparisons["base"]["passing"]["only_here"] == 10
        assert comparisons["teacher"] is None and "that right scored well" in comparisons["remark"]
        assert [(one["model_name"], one["invocation_count"]) for one in done["usage"]] == [(STUDENT, 10), (BASE, 10)]
        answered(http.get(f"/v1/evals/{done['eval_id']}/runs/{done['run_ids']['student']}"))
        listed = answered(http.get("/v1/distillations"))["data"]
        assert [one["id"] for one in listed] == [made["id"]]
        assert answered(http.post(f"/v1/distillations/{made['id']}/cancel"), 400)["error"]["code"] == "invalid_state"
        assert answered(http.delete(f"/v1/distillations/{made['id']}"))["deleted"]
        answered(http.get(f"/v1/distillations/{made['id']}"), 404)
        answered(http.get(f"/v1/files/{done['files']['manifest']}"))
    with redis.Redis.from_url(redis_url) as client:
        assert not client.exists(
            keys.flow(KIND, made["id"]), keys.active_flows(KIND), keys.flow_lease(KIND, made["id"])
        )


def test_a_teacher_outside_is_asked_once_for_each_prompt(launch: Launch, upstream: Several, tmp_path: Path) -> None:
    """One question is refused, and the process killed while an answer is on its way; then the distillation is
    cancelled, and its job with it."""
    with Several(stuck={"What is 5 and 5?"}, statuses=[400]) as teacher:
        outside = {"lan": JudgeEndpoint(base_url=f"{teacher.url}/v1")}
        first = launch(judge_endpoints=outside)
        wanted = {
            "source": {
                "type": "prompts",
                "prompts": content([*rows(20), rows(5)[4], {"item": {"answer": "?"}}]),
                "teacher": "lan/large",
                "input_messages": {
                    "type": "template",
                    "template": [{"role": "user", "content": "What is {{ item.question }}?"}],
                },
                "sampling_params": {"temperature": 0.2},
            },
            "student": {"model": BASE},
            "graders": [{**EXACT, "reference": "{{ item.row.answer }}"}],
        }
        with first.client() as http:
            flow_id = answered(http.post("/v1/distillations", json=wanted), 201)["id"]
            wait_until(lambda: teacher.asked().total() == 20)
            found = look(http, flow_id)
            run = f"/v1/evals/{found['candidates_eval_id']}/runs/{found['run_ids']['candidates']}"
            wait_until(lambda: answered(http.get(run))["result_counts"]["passed"] == 18)
        first.process.kill()
        first.process.wait()
        teacher.stuck = set()
        with launch(judge_endpoints=outside).client() as http:
            found = reached(http, flow_id, "training")
            assert teacher.asked()["What is 5 and 5?"] == 2 and teacher.asked().total() == 21
            assert {json.loads(one.body)["model"] for one in teacher.received} == {"large"}
            assert json.loads(teacher.received[0].body)["temperature"] == 0.2
            assert found["counts"] == {
                "found": 22, "dropped": {"duplicate": 1, "no_prompt": 1, "not_answered": 1},
                "training": 17, "held_out": 2,
            }  # fmt: skip
            assert found["source"]["posted_prompts"] == 22
            (refused,) = answered(http.get(f"{run}/output_items?status=error"))["data"]
            assert refused["sample"]["error"]["code"] == "endpoint_failed"
            held_out = lines_of(http, found["files"]["held_out"])
            assert all(one["item"]["output"] == one["item"]["row"]["answer"] for one in held_out)
            assert found["usage"][0]["model_name"] == "lan/large" and found["usage"][0]["invocation_count"] == 19

            assert answered(http.delete(f"/v1/distillations/{flow_id}"), 400)["error"]["code"] == (
                "invalid_distillation_state"
            )
            for _ in range(2):
                assert answered(http.post(f"/v1/distillations/{flow_id}/cancel"))["status"] == "canceled"
            job = f"/v1/fine_tuning/jobs/{found['job_id']}"
            wait_until(lambda: answered(http.get(job))["status"] == "cancelled")
            wait_until(lambda: not (tmp_path / "home" / "flows" / KIND / flow_id).exists())
            at = {one["name"]: one["status"] for one in look(http, flow_id)["stages"]}
            assert (at["selecting"], at["training"], at["evaluating"]) == ("completed", "canceled", "pending")
    assert not upstream.asked(), "nobody else was asked"


@pytest.fixture
def base(redis_url: str) -> None:
    """A base that no server is there for."""
    with_store(redis_url, lambda client: Registry(client).put_base(make_base()))


SOUND: dict[str, Any] = {
    "source": {"type": "stored_completions"}, "student": {"model": BASE}, "graders": [OUTPUT_IS_KEY],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"graders": []}, 400, "graders"),
        ({"graders": [OUTPUT_IS_KEY, OUTPUT_IS_KEY]}, 400, "graders[1].name"),
        ({"graders": [{**OUTPUT_IS_KEY, "input": "{{ stranger }}"}]}, 400, "graders[0].input"),
        ({"filter": {"minimum_scores": {"other": 1}}}, 400, "filter.minimum_scores"),
        ({"filter": {"near_duplicates": 0.2}}, 400, "filter.near_duplicates"),
        ({"graders": [{**OUTPUT_IS_KEY, "reference": "x" * 66_000}]}, 400, "graders"),
        (
            {
                "source": {
                    "input_messages": {"type": "template", "template": [{"role": "user", "content": "x" * 66_000}]}
                }
            },
            400,
            "source.input_messages",
        ),
        ({"student": {"model": "nobody"}}, 404, "student.model"),
        ({"student": {"model": BASE, "selftune": {"rank": 512}}}, 400, "student.selftune.rank"),
        ({"student": {"model": BASE, "selftune": {"method": {"type": "kto"}}}}, 400, "student.selftune.method"),
        ({"student": {"model": BASE, "training_file": "f"}}, 400, "student.training_file"),
        ({"evaluation": {"held_out": 0}}, 400, "evaluation.held_out"),
        ({"source": {"type": "elsewhere"}}, 400, "source.type"),
        ({"source": {"teacher": "lan/large"}}, 404, "source.teacher"),
        ({"source": {"prompts": {"type": "file_id", "id": "../x"}}}, 404, "source.prompts.id"),
        (
            {"source": {"input_messages": {"type": "item_reference", "item_reference": "sample.x"}}},
            400,
            "source.input_messages.item_reference",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_field(
    api: ApiServer, redis_url: str, base: None, changes: dict[str, Any], status: int, param: str
) -> None:
    body = {**SOUND, **changes}
    if "source" in changes and "type" not in changes["source"]:
        body["source"] = {"type": "prompts", "prompts": content(rows(1)), "teacher": BASE, **changes["source"]}
    with api.client() as http:
        error = answered(http.post("/v1/distillations", json=body), status)["error"]
        assert error["param"] == param, error
        assert answered(http.get("/v1/distillations"))["data"] == []


def test_too_few_rows_fail_with_what_was_dropped(api: ApiServer, redis_url: str, base: None) -> None:
    with api.client() as http:
        made = answered(http.post("/v1/distillations", json=SOUND), 201)
        done = reached(http, made["id"], "end")
        assert (done["status"], done["error"]["code"]) == ("failed", "too_few_rows")
        assert "Of 0 rows 0 are left" in done["error"]["message"] and done["job_id"] is None
        assert [one["status"] for one in done["stages"]] == ["completed", "skipped", "failed", "pending", "pending"]
