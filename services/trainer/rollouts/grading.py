"""Rewards: a job's grader, applied to the answers that were sampled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

from msgspec.structs import asdict, replace

from shared.grading.means import Means
from shared.grading.run import Grade, grade
from shared.grading.samples import sample_of
from shared.rollout_records import RolloutGroup, RolloutSample
from shared.schemas.graders import Grader, GraderErrors, JudgeUsage

GRADED_AT_ONCE = 64


class Grading:
    """Grades answers, so many at a time, and adds up what their judges have used."""

    def __init__(self, grader: Grader, means: Means) -> None:
        self._grader = grader
        self._means = means
        self._places = asyncio.Semaphore(GRADED_AT_ONCE)
        self._usage: dict[str, JudgeUsage] = {}

    async def grade(self, group: RolloutGroup) -> RolloutGroup:
        """Return the group with a reward for each answer that has none yet."""
        graded = await asyncio.gather(*(self._graded(group.item, sample) for sample in group.samples))
        return replace(group, samples=graded)

    def take_usage(self) -> dict[str, JudgeUsage]:
        """Return the tokens of judges since this was last asked, by model."""
        usage, self._usage = self._usage, {}
        return usage

    async def _graded(self, item: dict[str, Any], sample: RolloutSample) -> RolloutSample:
        if sample.reward is not None:
            return sample
        async with self._places:
            spoken = sample_of(sample.text, sample.tool_calls)
            found = await grade(self._grader, item=item, sample=spoken, means=self._means)
        self._usage = _total([self._usage, found.usage])
        return rewarded(sample, found)


def rewarded(sample: RolloutSample, found: Grade) -> RolloutSample:
    """Return an answer with what a grader made of it.

    It has no reward where a judge or the cage was away, which says nothing of it. What went wrong otherwise, such as an
    answer that is no JSON or a program that was stopped over it, is its own fault: 0.
    """
    errors = [name for name, value in asdict(found.errors).items() if value is True]
    return replace(
        sample,
        reward=None if found.is_away else found.reward,
        scores={} if found.is_away else found.sub_rewards or {found.name: found.reward},
        errors=errors,
        detail=_detail(found.errors),
    )


def _detail(errors: GraderErrors) -> str:
    told = (errors.model_grader_server_error_details, errors.python_grader_runtime_error_details)
    return "; ".join(text for text in told if text)


def _total(usages: Sequence[dict[str, JudgeUsage]]) -> dict[str, JudgeUsage]:
    models = dict.fromkeys(model for usage in usages for model in usage)
    return {model: reduce(add, (usage[model] for usage in usages if model in usage)) for model in models}
