"""Two runs of one eval beside each other, over the rows that both have a result for."""

from __future__ import annotations

import asyncio
import hashlib
import math
from array import array
from collections.abc import Sequence

import msgspec
from msgspec import Raw, Struct

from shared.errors import InvalidRequest
from shared.eval_records import EvalRunRecord
from shared.eval_states import EvalRunState
from shared.grading.statistics import SIGNIFICANT, mcnemar, paired_interval, wilcoxon
from shared.schemas.evals import (
    CriterionComparison,
    EvalRunComparison,
    PassComparison,
    ScoreComparison,
    Verdict,
)
from shared.store.eval_runs import EvalRunStore


class Graded(Struct, frozen=True):
    """A criterion's word on a row."""

    score: float
    passed: bool


class GradedRow(Struct, frozen=True):
    """As much of a row's result as is compared."""

    datasource_item: Raw
    results: list[Graded]
    status: str

    @property
    def passed(self) -> bool:
        return self.status == "pass"


_decode = msgspec.json.Decoder(GradedRow).decode


class Side:
    """What is compared of a run, row by row: for each criterion 9 bytes, whatever the rows are."""

    def __init__(self, record: EvalRunRecord) -> None:
        self.record = record
        self.items: list[bytes] = []
        """A digest of each row's item."""
        self.passed = bytearray()
        self.scores = [array("d") for _ in record.criteria]
        """Of each criterion, then of each row."""
        self.passes = [bytearray() for _ in record.criteria]

    def add(self, texts: Sequence[bytes]) -> None:
        """Add the next rows' results."""
        for row in map(_decode, texts):
            self.items.append(hashlib.blake2b(bytes(row.datasource_item), digest_size=16).digest())
            self.passed.append(row.passed)
            for place, result in enumerate(row.results):
                self.scores[place].append(result.score)
                self.passes[place].append(result.passed)


class Comparisons:
    """Compares runs."""

    def __init__(self, runs: EvalRunStore) -> None:
        self._runs = runs

    async def compare(self, run_id: str, against: str, *, eval_id: str, project: str) -> EvalRunComparison:
        """Raises NotFound, and InvalidRequest for runs that are not completed or have nothing in common."""
        here = await self._runs.find_record(run_id, eval_id=eval_id, project=project)
        other = await self._runs.find_record(against, eval_id=eval_id, project=project)
        _check_completed(here, "run_id")
        _check_completed(other, "against")
        marks = [await self._runs.marks(one.id) for one in (here, other)]
        both = range(min(map(len, marks)))
        shared = [number for number in both if all(chr(mark[number]) in "pf" for mark in marks)]
        sides = [await self._side(one, shared) for one in (here, other)]
        if not shared or not all(len(side.items) == len(shared) for side in sides):
            raise InvalidRequest(
                "The runs have no graded rows in common, or do not keep them any more.",
                code="nothing_to_compare",
                param="against",
            )
        return await asyncio.to_thread(_compared, *sides)

    async def _side(self, record: EvalRunRecord, numbers: Sequence[int]) -> Side:
        side = Side(record)
        async for some in self._runs.many_items(record.id, numbers):
            await asyncio.to_thread(side.add, some)
        return side


def _check_completed(record: EvalRunRecord, param: str) -> None:
    if record.status is not EvalRunState.COMPLETED:
        raise InvalidRequest(
            f"Run '{record.id}' has status '{record.status.value}'; only completed runs are compared.",
            code="invalid_run_state",
            param=param,
        )


def _compared(here: Side, other: Side) -> EvalRunComparison:
    rows = [number for number, item in enumerate(here.items) if item == other.items[number]]
    if not rows:
        raise InvalidRequest("The runs have no rows in common.", code="nothing_to_compare", param="against")
    passing = passing_of(_at(here.passed, rows), _at(other.passed, rows))
    return EvalRunComparison(
        eval_id=here.record.eval_id,
        run_id=here.record.id,
        against=other.record.id,
        verdict=verdict_of(passing),
        rows=len(rows),
        rows_left_out=max(here.record.rows, other.record.rows) - len(rows),
        passing=passing,
        per_testing_criteria=[
            _criterion(name, place, rows, here, other) for place, name in enumerate(here.record.criteria)
        ],
    )


def _criterion(name: str, place: int, rows: Sequence[int], here: Side, other: Side) -> CriterionComparison:
    passing = passing_of(_at(here.passes[place], rows), _at(other.passes[place], rows))
    scores = scores_of(
        [here.scores[place][number] for number in rows], [other.scores[place][number] for number in rows]
    )
    return CriterionComparison(
        testing_criteria=name, verdict=verdict_of(passing, scores), passing=passing, scores=scores
    )


def _at(flags: bytearray, rows: Sequence[int]) -> Sequence[bool]:
    return [flags[number] != 0 for number in rows]


def passing_of(here: Sequence[bool], other: Sequence[bool]) -> PassComparison:
    """Compare which rows pass; both have the same rows in the same order."""
    only_here = sum(one and not another for one, another in zip(here, other, strict=True))
    only_other = sum(another and not one for one, another in zip(here, other, strict=True))
    return PassComparison(
        passed=sum(here),
        passed_in_other=sum(other),
        only_here=only_here,
        only_in_other=only_other,
        p_value=mcnemar(only_here, only_other),
    )


def scores_of(here: Sequence[float], other: Sequence[float]) -> ScoreComparison:
    """Compare the scores of rows, at least one; both have the same rows in the same order."""
    differences = [one - another for one, another in zip(here, other, strict=True)]
    return ScoreComparison(
        mean=math.fsum(here) / len(here),
        mean_in_other=math.fsum(other) / len(other),
        difference=math.fsum(differences) / len(differences),
        interval=list(paired_interval(differences)),
        p_value=wilcoxon(differences),
    )


def verdict_of(passing: PassComparison, scores: ScoreComparison | None = None) -> Verdict:
    """Say better or worse only if everything says so that can: passing where it differs, scores where there are any."""
    said: set[Verdict] = set()
    if scores is None or passing.only_here or passing.only_in_other:
        said.add(_by_passing(passing))
    if scores is not None:
        said.add(_by_scores(scores))
    return said.pop() if len(said) == 1 else "no_difference_shown"


def _by_passing(passing: PassComparison) -> Verdict:
    if passing.p_value >= SIGNIFICANT:
        return "no_difference_shown"
    return "better" if passing.only_here > passing.only_in_other else "worse"


def _by_scores(scores: ScoreComparison) -> Verdict:
    lower, upper = scores.interval
    is_luck = scores.p_value is not None and scores.p_value >= SIGNIFICANT
    if is_luck or lower <= 0 <= upper:
        return "no_difference_shown"
    return "better" if lower > 0 else "worse"
