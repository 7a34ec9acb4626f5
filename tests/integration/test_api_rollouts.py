"""Rollouts of a reinforcement job: listed, summed up, and graded anew, from files as its trainer writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest

from shared.paths import write_atomic
from shared.rollout_records import (
    RolloutGroup,
    RolloutHeader,
    RolloutSample,
    RolloutStats,
    rollout_file,
    write_rollouts,
)
from tests.api_server import ApiServer
from tests.integration.test_api_job_options import create, sdk
from tests.integration.test_api_reinforcement import method

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
    figures = RolloutStats(**{name: getattr(STATS, name) for name in STATS.__struct_fields__} | stats)
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
