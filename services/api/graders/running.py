"""Graders as requests bring them: refused where they could not grade, else run."""

from __future__ import annotations

import asyncio

from services.api.graders.judges import Judges
from shared.errors import InvalidRequest
from shared.grading.caging import Caging
from shared.grading.means import Judge, Means, RewardModels
from shared.grading.parts import parts_of
from shared.grading.run import Grade, check, grade
from shared.grading.samples import sample_of
from shared.model_records import Access
from shared.reward_scoring import RewardScoring
from shared.schemas.graders import (
    Grader,
    GraderMetadata,
    GraderResult,
    MultiGrader,
    PythonGrader,
    RunGrader,
)


class Graders:
    """Has graders grade; those in Python are refused with the reason where no cage is to be had."""

    def __init__(self, judges: Judges, caging: Caging, reward_models: RewardScoring) -> None:
        self._judges = judges
        self._caging = caging
        self._reward_models = reward_models

    @property
    def judges(self) -> Judges:
        return self._judges

    @property
    def reward_models(self) -> RewardScoring:
        return self._reward_models

    def means(self, judge: Judge, reward_models: RewardModels | None = None) -> Means:
        """Return what graders may use who ask this judge and these reward models."""
        return Means(judge=judge, cage=self._caging.cage, reward_models=reward_models)

    async def check(self, grader: Grader, *, where: str = "grader") -> None:
        """Raise InvalidRequest, naming the field, for a grader that is not sound or that needs what is not here."""
        await asyncio.to_thread(check, grader, where=where)
        parts = parts_of(grader, where=where).values() if isinstance(grader, MultiGrader) else [grader]
        if any(isinstance(part, PythonGrader) for part in parts) and (reason := await self._caging.why_not()):
            raise InvalidRequest(
                f"Python graders cannot be run: {reason}.", code="python_graders_unavailable", param=where
            )

    async def run(self, asked: RunGrader, access: Access) -> GraderResult:
        """Grade one sample. Raises as check() does; what goes wrong later is in the result."""
        await self.check(asked.grader)
        sample = sample_of(asked.model_sample)
        means = self.means(self._judges.of(access), self._reward_models.of(access))
        return _result(await grade(asked.grader, item=asked.item, sample=sample, means=means))

    async def close(self) -> None:
        await self._judges.close()
        await self._reward_models.close()
        await self._caging.close()


def _result(done: Grade) -> GraderResult:
    tokens = [usage.total_tokens for usage in done.usage.values()]
    return GraderResult(
        reward=done.reward,
        metadata=GraderMetadata(
            name=done.name,
            type=done.type,
            errors=done.errors,
            execution_time=done.seconds,
            scores=done.sub_rewards or {done.name: done.reward},
            token_usage=sum(tokens) if tokens else None,
            sampled_model_name=done.sampled_model_name,
        ),
        sub_rewards=done.sub_rewards,
        model_grader_token_usage_per_model=done.usage,
    )
