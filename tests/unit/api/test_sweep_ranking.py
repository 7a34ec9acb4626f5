"""Which models a sweep that keeps the best one deletes, and what a run of the eval is worth."""

from __future__ import annotations

import pytest

from services.api.flow_jobs import lasting
from services.api.model_evals import scored
from services.api.sweeps.ranking import behind, ranked
from shared.errors import RateLimited
from shared.schemas.evals import Verdict
from shared.schemas.sweeps import RowCounts
from shared.sweep_records import SweepRecord, SweepRunRecord


def run(job_id: str, value: float | None, *, errored: int = 0) -> SweepRunRecord:
    rows = None if value is None else RowCounts(passed=0, graded=10, errored=errored)
    return SweepRunRecord(job_id=job_id, picks=[0], model="m", value=value, rows=rows)


def needless(*runs: SweepRunRecord, lead: Verdict | None = "no_difference_shown") -> list[str]:
    record = SweepRecord(
        id="s", project="p", created_at=1, body={}, axes=[], grid_size=1, metric="eval_pass_rate", runs=runs, lead=lead
    )
    return [one.job_id for one in behind(ranked(record))]


def test_only_models_that_were_compared_and_are_behind_are_needless() -> None:
    compared = [run("a", 0.5), run("b", 0.9), run("c", 0.9)]
    assert needless(*compared) == ["a", "c"]
    assert needless(*compared, run("d", None), run("e", 0.4, errored=1), lead="better") == ["a", "c"]
    assert needless(*compared, lead="worse") == []
    assert needless(*compared, run("lucky", 1.0, errored=9)) == []
    assert needless(run("d", None)) == []


def test_run_of_an_eval_is_worth_its_passed_of_its_graded_rows() -> None:
    found = scored({"passed": 3, "failed": 1, "errored": 6})
    assert (found.pass_rate, found.error) == (0.75, None)
    assert found.rows == RowCounts(passed=3, graded=4, errored=6)
    nothing = scored({"errored": 2})
    assert nothing.pass_rate is None and nothing.error is not None and nothing.error.code == "nothing_graded"


@pytest.mark.parametrize(
    ("code", "lasts"), [("storage_limit_exceeded", True), ("concurrent_eval_runs_exceeded", False)]
)
def test_full_storage_is_an_error_and_other_limits_are_waited_for(code: str, lasts: bool) -> None:
    error = lasting(RateLimited("No more.", code=code))
    assert (error is not None) is lasts
