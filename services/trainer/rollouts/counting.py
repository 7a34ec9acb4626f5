"""What a step's rollouts were like, in numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

from shared.rollout_records import RolloutGroup, RolloutSample, RolloutStats
from shared.schemas.graders import JudgeUsage


def stats_of(
    groups: Sequence[RolloutGroup], *, usage: Mapping[str, JudgeUsage], sampling_s: float, grading_s: float
) -> RolloutStats:
    """Count. `sampling_s` is the time until the last answer was there, `grading_s` what grading took beyond it."""
    samples = [sample for group in groups for sample in group.samples]
    graded = [(group, sample) for group in groups for sample in group.samples if sample.reward is not None]
    rewards = [_rewards([sample])[0] for _, sample in graded]
    by_prompt = [fmean(found) for group in groups if (found := _rewards(group.samples))]
    compared = [group for group in groups if len(group.samples) > 1]
    return RolloutStats(
        groups=len(groups),
        samples=len(samples),
        reward_mean=_mean(rewards),
        reward_std=stdev(rewards) if len(rewards) > 1 else 0.0,
        standard_error=stdev(by_prompt) / math.sqrt(len(by_prompt)) if len(by_prompt) > 1 else 0.0,
        scores=_scores(sample for _, sample in graded),
        zero_variance_share=_mean([len(set(_rewards(group.samples))) < 2 for group in compared]),
        completion_tokens_mean=_mean([len(sample.tokens) for _, sample in graded]),
        prompt_tokens_mean=_mean([len(group.prompt_tokens) for group, _ in graded]),
        truncated_share=_mean([sample.is_truncated for _, sample in graded]),
        ungraded=len(samples) - len(graded),
        errors=dict(Counter(name for sample in samples for name in sample.errors)),
        usage=dict(usage),
        sampling_s=round(sampling_s, 3),
        grading_s=round(grading_s, 3),
    )


def _rewards(samples: Iterable[RolloutSample]) -> list[float]:
    return [sample.reward for sample in samples if sample.reward is not None]


def _scores(samples: Iterable[RolloutSample]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for sample in samples:
        for name, score in sample.scores.items():
            found.setdefault(name, []).append(score)
    return {name: fmean(scores) for name, scores in found.items()}


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
