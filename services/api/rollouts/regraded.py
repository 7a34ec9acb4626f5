"""What another grader makes of a job's rollouts, beside the rewards that the job has learnt from."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from itertools import groupby
from statistics import StatisticsError, correlation, fmean
from typing import NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from services.api.rollouts.regrading import ROLLOUT_KEY
from shared.errors import NotFound, StoreUnavailable
from shared.eval_records import EvalRunRecord, RegradedJob
from shared.eval_states import ENDED
from shared.grading import formula
from shared.grading.formula import FormulaError
from shared.grading.parts import parts_of
from shared.grading.score import MAX_REWARD
from shared.schemas.graders import Grader, MultiGrader, RunnableGrader
from shared.schemas.rollouts import RegradedStep, RolloutRegrade
from shared.store.eval_runs import EvalRunStore
from shared.store.evals import EvalStore

_KNOWN_RUNS = 4
"""Runs under way of which is remembered what was read; each has 50,000 results at most, of some 100 bytes."""
_AT_ONCE = 500


class _Which(Struct, frozen=True):
    step: int
    line: int
    sample: int
    reward: float | None = None


class _Item(Struct, frozen=True, rename={"rollout": ROLLOUT_KEY}):
    rollout: _Which | None = None


class _Error(Struct, frozen=True):
    code: str = ""


class _Result(Struct, frozen=True):
    name: str
    score: float
    error: _Error = _Error()
    ungraded: bool = False


class _Row(Struct, frozen=True):
    datasource_item: _Item
    results: list[_Result]


class Pair(NamedTuple):
    """An answer with the reward that it had, and the one that it has now; None where a grader could not say."""

    step: int
    line: int
    original: float | None
    now: float | None


_decode = msgspec.json.Decoder(_Row).decode


class _Read:
    """What has been read of a run; a result that is there stays as it is."""

    def __init__(self) -> None:
        self.reading = asyncio.Lock()
        self.numbers: set[int] = set()
        self.pairs: list[Pair] = []


class Regraded:
    """Reads runs that grade rollouts: of one under way what is new since it was last asked for, of one that is at its
    end everything once."""

    def __init__(self, evals: EvalStore, runs: EvalRunStore) -> None:
        self._evals = evals
        self._runs = runs
        self._read: dict[str, _Read] = {}

    async def find(self, run_id: str, *, job_id: str, project: str) -> RolloutRegrade:
        """Show what a run has come to so far. Raises NotFound for one that grades no rollouts of this job."""
        run, regrades = await self._run(run_id, job_id, project)
        if run.regrade is not None:
            return run.regrade
        found = await asyncio.to_thread(regrade_of, run, regrades, await self._pairs(run_id, regrades.grader))
        if run.status in ENDED:
            with suppress(StoreUnavailable):  # it is kept when it is asked for again
                await self._runs.update(run_id, lambda record: replace(record, regrade=found))
                self._read.pop(run_id, None)
        return found

    async def _pairs(self, run_id: str, grader: Grader) -> list[Pair]:
        """Return the pairs of all results that are there, of which only those are read that were not yet."""
        read = self._read.pop(run_id, None) or _Read()
        self._read[run_id] = read
        if len(self._read) > _KNOWN_RUNS:
            del self._read[next(iter(self._read))]
        async with read.reading:
            marks = await self._runs.marks(run_id)
            numbers = [number for number, mark in enumerate(marks) if mark and number not in read.numbers]
            for start in range(0, len(numbers), _AT_ONCE):
                some = numbers[start : start + _AT_ONCE]
                pairs: list[Pair] = []
                async for items in self._runs.many_items(run_id, some):
                    pairs += await asyncio.to_thread(pairs_of, items, grader)
                read.pairs += pairs
                read.numbers.update(some)
            return [*read.pairs]

    async def _run(self, run_id: str, job_id: str, project: str) -> tuple[EvalRunRecord, RegradedJob]:
        with suppress(NotFound):
            run = await self._runs.get(run_id)
            regrades = (await self._evals.get(run.eval_id, project=project)).regrades
            if regrades is not None and regrades.job_id == job_id:
                return run, regrades
        raise NotFound(f"Job {job_id} has no regrade with run '{run_id[:100]}'.", param="run_id")


def pairs_of(items: Iterable[bytes], grader: Grader) -> list[Pair]:
    """Read results of rows that are rollouts."""
    rows = map(_decode, items)
    names = parts_of(grader).keys() if isinstance(grader, MultiGrader) else {grader.name}
    return [
        Pair(which.step, which.line, which.reward, _reward(row.results, grader, names))
        for row in rows
        if (which := row.datasource_item.rollout) is not None
    ]


def _reward(results: Sequence[_Result], grader: Grader, names: AbstractSet[str]) -> float | None:
    """Return the reward of an answer; None unless every part of the grader, by these names, could say something."""
    scores = {result.name: result.score for result in results}
    if any(result.ungraded for result in results) or not names <= scores.keys():
        return None
    if any(result.error.code for result in results):
        return 0.0
    if not isinstance(grader, MultiGrader):
        return scores[grader.name]
    try:
        reward = formula.compute(grader.calculate_output, scores)
    except FormulaError:
        return 0.0
    return reward if abs(reward) <= MAX_REWARD else 0.0


def regrade_of(run: EvalRunRecord, regrades: RegradedJob, pairs: Sequence[Pair]) -> RolloutRegrade:
    """Sum a run up."""
    both = sorted(pair for pair in pairs if None not in pair)
    groups = [list(group) for _, group in groupby(both, key=lambda pair: pair[:2])]
    compared = [group for group in groups if len(group) > 1]
    return RolloutRegrade(
        fine_tuning_job_id=regrades.job_id,
        eval_id=run.eval_id,
        eval_run_id=run.id,
        status=run.status.value,
        grader=regrades.grader,
        rollouts=run.rows,
        graded=len(pairs),
        ungraded=sum(pair.now is None for pair in pairs),
        correlation=_correlation(both),
        groups=len(compared),
        groups_with_other_best=sum(_has_other_best(group) for group in compared),
        steps=[_step(step, list(group)) for step, group in groupby(both, key=lambda pair: pair.step)],
    )


def _step(step: int, pairs: Sequence[Pair]) -> RegradedStep:
    original, now = _rewards(pairs)
    return RegradedStep(
        step=step,
        answers=len(pairs),
        reward_mean=fmean(now),
        original_reward_mean=fmean(original),
        correlation=_correlation(pairs),
    )


def _correlation(pairs: Sequence[Pair]) -> float | None:
    try:
        return correlation(*_rewards(pairs))
    except StatisticsError:  # fewer than two, or all the same
        return None


def _has_other_best(group: Sequence[Pair]) -> bool:
    original, now = ({place for place, one in enumerate(side) if one == max(side)} for side in _rewards(group))
    return original.isdisjoint(now)


def _rewards(pairs: Sequence[Pair]) -> tuple[list[float], list[float]]:
    """Return original rewards and those of now; all pairs have both."""
    return (
        [pair.original for pair in pairs if pair.original is not None],
        [pair.now for pair in pairs if pair.now is not None],
    )


def new_regrade(run: EvalRunRecord, grader: RunnableGrader, job_id: str) -> RolloutRegrade:
    """Show a run that was just made."""
    return regrade_of(run, RegradedJob(job_id=job_id, grader=grader), [])
