"""Rollouts of a reinforcement job: listed, summed up, and graded anew, from files as its trainer writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest
from msgspec.structs import replace

from shared.paths import write_atomic
from shared.rollout_records import (
    RolloutGroup,
    RolloutHeader,
    RolloutSample,
    RolloutStats,
    rollout_file,
    write_rollouts,
)
from tests.api_server import ApiServer, wait_until
from tests.integration.test_api_job_options import create, sdk
from tests.integration.test_api_reinforcement import JUDGE, method

__all__ = ["create", "sdk"]

STATS = RolloutStats(groups=2, samples=4, reward_mean=0.25, reward_std=0.5, completion_tokens_mean=10.0)


@pytest.fixture
def http(api: ApiServer) -> Iterator[httpx2.Client]:
    with api.client() as client:
        yield client


def group(line: int, *rewards: float | None, text: str = "answer {line} {sample}") -> RolloutGroup:
    samples = [
        RolloutSample(
            tokens=[5, 6, 7], logprobs=[-0.5] * 3, text=text.format(line=line, sample=sample), reward=reward,
            scores={} if reward is None else {"right": reward},
            errors=[] if reward is not None else ["model_grader_server_error"],
            detail="" if reward is not None else "away",
        )
        for sample, reward in enumerate(rewards)
    ]  # fmt: skip
    messages = [{"role": "user", "content": f"question {line}"}]
    return RolloutGroup(
        line=line, prompt_tokens=[1, 2], item={"messages": messages, "label": f"answer {line} 0"}, samples=samples
    )


def write(
    api: ApiServer, job_id: str, step: int, *groups: RolloutGroup, validation: bool = False, **stats: Any
) -> None:
    counts = {"groups": len(groups), "samples": sum(len(group.samples) for group in groups)}
    figures = replace(STATS, **counts, **stats)
    header = RolloutHeader(step=step, validation=validation, policy="00", stats=figures)
    path = rollout_file(api.paths.job_folder(job_id), step, validation=validation)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, write_rollouts(header, list(groups)))


@pytest.fixture
def job(api: ApiServer, create: Callable[..., Any]) -> str:
    """A job with rollouts of two steps and two validations."""
    job_id: str = create(method=method()).id
    write(api, job_id, 0, group(1, 0.0), validation=True, reward_mean=0.0)
    write(api, job_id, 1, group(7, 0.0, 1.0), group(3, 0.5, None))
    write(api, job_id, 2, group(3, 1.0, 0.0))
    write(api, job_id, 2, group(1, 1.0), validation=True, reward_mean=1.0)
    return job_id


def pages(http: httpx2.Client, job_id: str, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        answer = http.get(f"/v1/fine_tuning/jobs/{job_id}/rollouts", params=query)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += page["data"]
        if not page["has_more"]:
            return found
        assert page["last_id"] == found[-1]["id"]
        query["after"] = page["last_id"]


def places(rollouts: list[dict[str, Any]]) -> list[tuple[int, bool, int, int]]:
    return [(one["step"], one["validation"], one["line"], one["sample"]) for one in rollouts]


ALL = [
    (0, True, 1, 0), (1, False, 7, 0), (1, False, 7, 1), (1, False, 3, 0), (1, False, 3, 1), (2, False, 3, 0),
    (2, False, 3, 1), (2, True, 1, 0),
]  # fmt: skip


@pytest.mark.parametrize("limit", [1, 2, 3, 8, 100])
def test_pages_hold_every_rollout_once(http: httpx2.Client, job: str, limit: int) -> None:
    assert places(pages(http, job, limit=limit)) == ALL
    back = [*ALL[7:], *ALL[5:7], *ALL[1:5], *ALL[:1]]
    assert places(pages(http, job, limit=limit, order="desc")) == back


def test_rollout_has_prompt_answer_and_grades(http: httpx2.Client, job: str) -> None:
    first, ungraded = pages(http, job, step=1, line=3, limit=1)
    assert first == {
        "id": "rollout_train_1_3_0", "object": "fine_tuning.job.rollout", "fine_tuning_job_id": job, "step": 1,
        "validation": False, "line": 3, "sample": 0, "messages": [{"role": "user", "content": "question 3"}],
        "tools": None, "item": {"label": "answer 3 0"}, "output_text": "answer 3 0", "output_tools": None,
        "finish_reason": "stop", "reward": 0.5, "scores": {"right": 0.5}, "errors": [], "error_details": "",
        "prompt_tokens": 2, "completion_tokens": 3,
    }  # fmt: skip
    assert (ungraded["reward"], ungraded["errors"], ungraded["error_details"]) == (
        None, ["model_grader_server_error"], "away",
    )  # fmt: skip


def test_lists_are_narrowed(http: httpx2.Client, job: str) -> None:
    assert places(pages(http, job, validation="true")) == [ALL[0], ALL[7]]
    assert places(pages(http, job, line=3, limit=3)) == ALL[3:7]
    assert places(pages(http, job, step=2, validation="false")) == ALL[5:7]
    assert pages(http, job, step=3) == pages(http, job, line=99) == []


@pytest.mark.parametrize(
    "after",
    ["rollout_train_1_7_2", "rollout_train_9_1_0", "rollout_valid_1_7_0", "rollout_train_1_99_0", "../x", "x:y"],
)
def test_unknown_places_are_refused(http: httpx2.Client, job: str, after: str) -> None:
    answer = http.get(f"/v1/fine_tuning/jobs/{job}/rollouts", params={"after": after})
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "after")


def test_summary_shows_steps_and_alarms(api: ApiServer, http: httpx2.Client, create: Callable[..., Any]) -> None:
    job_id = create(method=method()).id
    path = f"/v1/fine_tuning/jobs/{job_id}/rollouts/summary"
    assert http.get(path).json() == {
        "object": "fine_tuning.job.rollout_summary", "fine_tuning_job_id": job_id, "steps": [], "alarms": [],
    }  # fmt: skip
    for step in range(1, 13):
        write(api, job_id, step, group(1, 1.0), repeated_share=0.01 if step < 8 else 0.6, scores={"right": 0.5})
    write(api, job_id, 6, group(1, 1.0), validation=True, reward_mean=0.75)
    (api.paths.job_folder(job_id) / "rollouts" / "train-000013.jsonl.tmp").write_text("half")
    summary = http.get(path).json()
    assert [(one["step"], one["validation"]) for one in summary["steps"]][5:8] == [(6, False), (6, True), (7, False)]
    assert (summary["steps"][6]["reward_mean"], summary["steps"][0]["scores"]) == (0.75, {"right": 0.5})
    [alarm] = summary["alarms"]
    assert (alarm["kind"], alarm["step"], alarm["grader"]) == ("repetition", 10, None)
    write(api, job_id, 12, group(1, 1.0), reward_mean=0.9)
    assert http.get(path).json()["steps"][-1]["reward_mean"] == 0.9, "a step that was taken again is read again"


LIKES_SECOND = {
    "type": "string_check", "name": "second", "input": "{{ sample.output_text }}", "reference": " 1",
    "operation": "like",
}  # fmt: skip
IS_LABEL = {
    "type": "text_similarity", "name": "any", "input": "{{sample.output_text}}", "reference": "{{item.label}}",
    "evaluation_metric": "fuzzy_match",
}  # fmt: skip


def regraded(http: httpx2.Client, job_id: str, **asked: Any) -> dict[str, Any]:
    """Have rollouts graded and wait for the end."""
    path = f"/v1/fine_tuning/jobs/{job_id}/rollouts/regrade"
    made = http.post(path, json=asked)
    assert made.status_code == 201, made.text
    started = made.json()
    found: dict[str, Any] = {}

    def is_over() -> bool:
        answer = http.get(f"{path}/{started['eval_run_id']}")
        assert answer.status_code == 200, answer.text
        found.update(answer.json())
        return bool(found["status"] not in ("queued", "in_progress"))

    wait_until(is_over, timeout_s=60)
    assert started["grader"] == found["grader"] == asked["grader"]
    return found


def test_other_grader_is_shown_beside_the_one_that_was_learnt_from(http: httpx2.Client, job: str) -> None:
    found = regraded(http, job, grader=LIKES_SECOND)
    assert (found["status"], found["rollouts"], found["graded"], found["ungraded"]) == ("completed", 6, 6, 0)
    assert found["steps"] == [
        {"step": 1, "answers": 3, "reward_mean": pytest.approx(1 / 3), "original_reward_mean": 0.5,
         "correlation": pytest.approx(0.866, abs=1e-3)},
        {"step": 2, "answers": 2, "reward_mean": 0.5, "original_reward_mean": 0.5, "correlation": pytest.approx(-1.0)},
    ]  # fmt: skip
    assert (found["groups"], found["groups_with_other_best"]) == (2, 1)
    run = f"/v1/evals/{found['eval_id']}/runs/{found['eval_run_id']}"
    item = http.get(f"{run}/output_items", params={"limit": 1}).json()["data"][0]["datasource_item"]
    assert item["selftune_rollout"] == {"step": 1, "validation": False, "line": 7, "sample": 0, "reward": 0.0}
    assert item["label"] == "answer 7 0"
    assert http.get(f"/v1/evals/{found['eval_id']}").json()["testing_criteria"] == [LIKES_SECOND]
    assert http.delete(f"/v1/evals/{found['eval_id']}").status_code == 200
    assert http.get(f"/v1/fine_tuning/jobs/{job}/rollouts/regrade/{found['eval_run_id']}").status_code == 404


def test_parts_of_a_multi_grader_become_criteria(http: httpx2.Client, job: str) -> None:
    multi = {
        "type": "multi", "name": "both", "graders": {"alike": IS_LABEL, "second": LIKES_SECOND},
        "calculate_output": "10 * second + alike",
    }  # fmt: skip
    found = regraded(http, job, grader=multi, first_step=2, last_step=2)
    [step] = found["steps"]
    assert (found["rollouts"], step["step"], step["original_reward_mean"]) == (2, 2, 0.5)
    assert step["reward_mean"] == pytest.approx((1.0 + 10 + 0.9) / 2, abs=0.1)
    criteria = http.get(f"/v1/evals/{found['eval_id']}").json()["testing_criteria"]
    assert [(one["name"], one.get("pass_threshold")) for one in criteria] == [("alike", 1.0), ("second", None)]


def test_some_prompts_are_drawn_whole(http: httpx2.Client, job: str) -> None:
    found = [regraded(http, job, grader=LIKES_SECOND, sample=1) for _ in range(2)]
    assert [one["rollouts"] for one in found] == [2, 2] and found[0]["steps"] == found[1]["steps"]
    assert regraded(http, job, grader=LIKES_SECOND, validation=True)["rollouts"] == 2


def test_same_regrade_is_asked_for_once(http: httpx2.Client, job: str) -> None:
    path, header = f"/v1/fine_tuning/jobs/{job}/rollouts/regrade", {"idempotency-key": f"again {job}"}
    answers = [http.post(path, json={"grader": LIKES_SECOND}, headers=header).json() for _ in range(2)]
    assert answers[0]["eval_run_id"] == answers[1]["eval_run_id"]


@pytest.mark.parametrize(
    ("body", "param", "status"),
    [
        ({}, "grader", 400),
        ({"grader": LIKES_SECOND | {"input": "{{ x }}"}}, "grader.input", 400),
        ({"grader": LIKES_SECOND, "first_step": 5}, "first_step", 400),
        ({"grader": LIKES_SECOND, "sample": 0}, "sample", 400),
        ({"grader": LIKES_SECOND, "steps": [1, 2]}, "steps", 400),
        ({"grader": JUDGE | {"model": "gone"}}, "grader.model", 404),
    ],
)
def test_regrade_that_cannot_be_is_refused_by_field(
    http: httpx2.Client, job: str, body: dict[str, Any], param: str, status: int
) -> None:
    before = {kind: len(http.get(f"/v1/{kind}").json()["data"]) for kind in ("evals", "files")}
    answer = http.post(f"/v1/fine_tuning/jobs/{job}/rollouts/regrade", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert {kind: len(http.get(f"/v1/{kind}").json()["data"]) for kind in before} == before, "nothing is left behind"


def test_run_that_grades_no_rollouts_is_no_regrade(http: httpx2.Client, job: str) -> None:
    rows = {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {"q": "x"}}]}}
    config = {"type": "custom", "item_schema": {"type": "object"}}
    check = LIKES_SECOND | {"input": "x"}
    eval_id = http.post("/v1/evals", json={"data_source_config": config, "testing_criteria": [check]}).json()["id"]
    run_id = http.post(f"/v1/evals/{eval_id}/runs", json={"data_source": rows}).json()["id"]
    for unknown in (run_id, "evalrun_none"):
        answer = http.get(f"/v1/fine_tuning/jobs/{job}/rollouts/regrade/{unknown}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "run_id")


def test_jobs_without_rollouts_say_so(http: httpx2.Client, create: Callable[..., Any]) -> None:
    job_id = create().id
    for path in ("rollouts", "rollouts/summary"):
        answer = http.get(f"/v1/fine_tuning/jobs/{job_id}/{path}")
        assert answer.status_code == 400 and "its method is 'supervised'" in answer.json()["error"]["message"]
        assert http.get(f"/v1/fine_tuning/jobs/ftjob-none/{path}").status_code == 404


def test_rollouts_of_another_project_are_unknown(
    api: ApiServer, http: httpx2.Client, sdk: openai.OpenAI, job: str
) -> None:
    stranger = http.post("/v1/organization/projects", json={"name": "other"}).json()["id"]
    made = http.post(f"/v1/organization/projects/{stranger}/service_accounts", json={"name": "x"}).json()
    with api.client(made["api_key"]["value"]) as other:
        for path in ("rollouts", "rollouts/summary"):
            assert other.get(f"/v1/fine_tuning/jobs/{job}/{path}").status_code == 404
