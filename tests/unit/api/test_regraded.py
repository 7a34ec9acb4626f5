"""What is made of a run that grades rollouts anew: rewards, curves, and whose best answers change."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from services.api.evals.grading import result_of_grade
from services.api.rollouts.regraded import Pair, pairs_of, regrade_of
from services.trainer.rollouts.grading import rewarded
from shared.eval_records import EvalRunRecord, RegradedJob
from shared.grading.run import Means, grade
from shared.rollout_records import RolloutSample
from shared.schemas.graders import MultiGrader, PythonGrader, StringCheckGrader

CHECK = StringCheckGrader(name="n", input="i", reference="r", operation="eq")
PART = msgspec.to_builtins(CHECK)
MULTI = MultiGrader(name="m", graders={"a": PART, "b": PART}, calculate_output="a - 2 * b")
RUN = EvalRunRecord(id="evalrun_1", eval_id="eval_1", project="p", criteria=["n"], created_at=0, rows=9)


def item(results: list[dict[str, Any]], **which: Any) -> bytes:
    rollout = {"step": 1, "validation": False, "line": 2, "sample": 0, "reward": 0.5} | which
    return msgspec.json.encode({"datasource_item": {"selftune_rollout": rollout, "x": 1}, "results": results})


def result(name: str, score: float, code: str = "", *, ungraded: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "type": "t", "score": score, "passed": True}
    found |= {"error": {"code": code, "message": "m"}} if code else {}
    return found | ({"ungraded": True} if ungraded else {})


@pytest.mark.parametrize(
    ("results", "reward"),
    [
        ([result("a", 1.0), result("b", 0.25)], 0.5),
        ([result("a", 1.0), result("b", 0.0, "sample_parse_error")], 0.0),
        ([result("a", 1.0), result("b", 0.0, "python_grader_server_error")], 0.0),
        ([result("a", 1.0), result("b", 0.0, "model_grader_server_error", ungraded=True)], None),
        ([result("a", 1e30), result("b", -1e30)], 0.0),
        ([result("a", 1.0)], None),
    ],
)
def test_parts_are_put_together_by_the_formula(results: list[dict[str, Any]], reward: float | None) -> None:
    assert pairs_of([item(results)], MULTI) == [Pair(1, 2, 0.5, reward)]


class Outcome(msgspec.Struct):
    """What came of a program that gave no score."""

    problem: str
    score: float | None = None
    details: str = "why"


class Caged:
    """A cage in which every program ends alike."""

    def __init__(self, problem: str) -> None:
        self.problem = problem

    async def grade(self, *_: Any) -> Outcome:
        return Outcome(self.problem)


@pytest.mark.parametrize(
    ("problem", "reward"), [("timeout", 0.0), ("memory", 0.0), ("output", 0.0), ("unavailable", None)]
)
def test_the_same_grader_gives_the_rewards_that_the_job_has_learnt_from(problem: str, reward: float | None) -> None:
    """A program that was stopped is the answer's fault, a cage that is away is not."""
    grader = PythonGrader(name="p", source="def grade(sample, item):\n    return 1\n")
    found = asyncio.run(grade(grader, item={}, sample={}, means=Means(cage=Caged(problem))))
    again = msgspec.to_builtins(result_of_grade(found))
    [pair] = pairs_of([item([again])], grader)
    assert pair.now == reward == rewarded(RolloutSample(tokens=[1], logprobs=[-1.0]), found).reward


def test_rows_that_are_no_rollouts_are_left_out() -> None:
    other = msgspec.json.encode({"datasource_item": {"q": 1}, "results": [result("n", 1.0)]})
    assert pairs_of([other, item([result("n", 1.0)], reward=None)], CHECK) == [Pair(1, 2, None, 1.0)]


def test_curves_and_best_answers() -> None:
    pairs = [
        Pair(1, 1, 1.0, 0.0), Pair(1, 1, 0.0, 1.0),  # another best one
        Pair(1, 2, 1.0, 1.0), Pair(1, 2, 1.0, 0.0),  # one of those that were best still is
        Pair(2, 1, 0.5, 0.5), Pair(2, 1, 0.0, 0.5),  # all are best now
        Pair(2, 3, 0.5, 0.5), Pair(2, 4, None, 1.0), Pair(2, 4, 1.0, None),  # nothing to compare
    ]  # fmt: skip
    found = regrade_of(RUN, RegradedJob(job_id="ftjob-1", grader=CHECK), pairs)
    assert (found.rollouts, found.graded, found.ungraded) == (9, 9, 1)
    assert (found.groups, found.groups_with_other_best) == (3, 1)
    assert [(step.step, step.answers, step.original_reward_mean, step.reward_mean) for step in found.steps] == [
        (1, 4, 0.75, 0.5), (2, 3, pytest.approx(1 / 3), 0.5),
    ]  # fmt: skip
    assert found.steps[0].correlation == pytest.approx(-0.577, abs=1e-3) and found.steps[1].correlation is None


def test_run_without_results_has_no_curve() -> None:
    found = regrade_of(RUN, RegradedJob(job_id="ftjob-1", grader=CHECK), [])
    assert (found.steps, found.correlation, found.groups) == ([], None, 0)
