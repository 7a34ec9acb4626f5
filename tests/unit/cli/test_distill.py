"""What `selftune distill` asks for, and how it tells what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.cli.distill import graders_in, report, scores, source_of
from services.cli.openai_api import OpenAIApi
from shared.distillation_records import DistillationIds, DistillationRecord
from shared.errors import InvalidRequest
from shared.flow_records import FlowError
from shared.flow_states import FlowState
from shared.schemas.distillations import (
    CreateDistillation,
    DistillationComparisons,
    DistillationCounts,
    DistillationEvaluation,
    DistillationFilter,
    DistillationRun,
    ShownSource,
    Student,
)
from shared.schemas.evals import EvalRunComparison, ModelUsage, PassComparison, ResultCounts

NOTHING: dict[str, Any] = {"prompts": None, "teacher": None, "ask": None, "model": None, "metadata": [], "sampling": {}}


@pytest.fixture
def api() -> OpenAIApi:
    return OpenAIApi("http://127.0.0.1:9/v1", "key")


def test_stored_completions_are_chosen_by_model_and_metadata(api: OpenAIApi) -> None:
    source = source_of(api, **NOTHING | {"model": "m", "metadata": ["task=a=b", "team="]})
    grader = {"type": "string_check", "name": "g", "operation": "eq", "input": "a", "reference": "b"}
    body = {"source": source, "student": {"model": "m"}, "graders": [grader]}
    found = msgspec.convert(body, CreateDistillation)
    assert found.source.metadata == {"task": "a=b", "team": ""}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "options",
    [
        {"prompts": Path("p.jsonl")},
        {"teacher": "t"},
        {"ask": "What?"},
        {"prompts": Path("p.jsonl"), "teacher": "t", "model": "m"},
        {"metadata": ["task"]},
        {"metadata": ["=x"]},
    ],
)
def test_options_that_do_not_fit_together_are_refused(api: OpenAIApi, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        source_of(api, **NOTHING | options)


def test_scores_and_graders_are_read(tmp_path: Path) -> None:
    assert scores(["close=0.5"]) == {"close": 0.5}
    with pytest.raises(InvalidRequest, match="name=number"):
        scores(["close=much"])
    path = tmp_path / "graders.json"
    path.write_text('{"name": "a"}')
    assert graders_in(path) == [{"name": "a"}]
    path.write_text("[")
    with pytest.raises(InvalidRequest, match="is no JSON"):
        graders_in(path)


def record(**fields: Any) -> DistillationRecord:
    return DistillationRecord(
        id="distill_1", project="p", created_at=1, source=ShownSource(type="stored_completions"),
        filter=DistillationFilter(), graders=[], student=Student(model="m"), start_model="m",
        evaluation=DistillationEvaluation(), ids=DistillationIds.new(), **fields,
    )  # fmt: skip


def test_the_report_says_what_was_dropped_and_who_is_better() -> None:
    passing = PassComparison(passed=9, passed_in_other=2, only_here=7, only_in_other=0, p_value=0.0156)
    better = EvalRunComparison(
        eval_id="e", run_id="r", against="a", verdict="better", rows=10, rows_left_out=0, passing=passing,
        per_testing_criteria=[],
    )  # fmt: skip
    run = DistillationRun(
        role="student", id="r", status="completed", result_counts=ResultCounts(total=10, passed=9),
        per_testing_criteria_results=[], per_model_usage=[ModelUsage(model_name="m", total_tokens=50)],
    )  # fmt: skip
    done = record(
        step="end", status=FlowState.COMPLETED, fine_tuned_model="ft:m", trained_tokens=70, runs=[run],
        counts=DistillationCounts(found=20, dropped={"duplicate": 2}, training=8, held_out=10),
        comparisons=DistillationComparisons(base=better, remark="The teacher is not compared."),
    )  # fmt: skip
    lines = report(msgspec.to_builtins(done.public()))
    assert lines[:2] == ["rows        20 found, 8 to train on, 10 held out", "dropped     2 duplicate"]
    assert f"manifest    {done.ids.manifest}" in lines and "student     passed 9 of 10" in lines
    assert "The student is better than the base (p 0.0156)." in lines
    assert lines[-2] == "The teacher is not compared."
    assert lines[-1] == "tokens      50 asked and answered, 70 trained"
    failed = record(status=FlowState.FAILED, error=FlowError(code="x", message="No room."))
    assert "failed: No room." in report(msgspec.to_builtins(failed.public()))
