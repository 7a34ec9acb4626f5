"""What a step of reinforcement tells of its rollouts, under the names that OpenAI's events of such jobs have.

    scores   mean rewards, of all and by grader
    usage    tokens of the answers, and of judges
    errors   how often graders failed, and with what
    timing   seconds of the step: sampling, grading, training, evaluation, all together

OpenAI's `reasoning_tokens` are left out: what a model thinks is part of its answer here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

from services.trainer.protocol import Metrics
from shared.grading.parts import parts_of
from shared.rollout_records import RolloutStats
from shared.schemas.graders import (
    Grader,
    GraderErrors,
    JudgeUsage,
    LabelModelGrader,
    MultiGrader,
    ScoreModelGrader,
    SingleGrader,
)

Role: TypeAlias = Literal["train", "valid"]

FLAGS = tuple(name for name in GraderErrors.__struct_fields__ if getattr(GraderErrors(), name) is False)


def reward_data(metrics: Metrics, grader: Grader) -> dict[str, Any]:
    """Return what an event's data have about a step's rollouts; what was not evaluated in this step is left out."""
    found = list(_found(metrics))
    scores = {f"{role}_reward_mean": stats.reward_mean for role, stats in found}
    lengths = {f"{role}_completion_tokens_mean": stats.completion_tokens_mean for role, stats in found}
    counts = {f"{role}_completion_tokens_count": _tokens(stats) for role, stats in found}
    data = {
        "scores": scores | {"graders": _by_grader(found, grader)},
        "usage": {"samples": lengths | counts, "graders": _judges(found, grader)},
        "errors": {"graders": [_named(grader.name, grader) | _failures(found)]},
        "timing": {"step": _seconds(metrics), "graders": []},
        "model_graders_token_usage": _usage(found),
    }
    if (train := metrics.rollouts) is not None:
        data |= {
            "train_mean_reward": train.reward_mean,
            "completion_tokens_mean": train.completion_tokens_mean,
            "mean_unresponsive_rewards": _share(train, "unresponsive_reward_error"),
        }
    if (valid := metrics.valid_rollouts) is not None:
        data |= {
            "full_valid_mean_reward": valid.reward_mean,
            "full_valid_mean_parse_error": _share(valid, "sample_parse_error"),
        }
    return data


def _found(metrics: Metrics) -> Iterator[tuple[Role, RolloutStats]]:
    if metrics.rollouts is not None:
        yield "train", metrics.rollouts
    if metrics.valid_rollouts is not None:
        yield "valid", metrics.valid_rollouts


def _parts(grader: Grader) -> dict[str, SingleGrader]:
    return parts_of(grader) if isinstance(grader, MultiGrader) else {grader.name: grader}


def _named(name: str, grader: Grader) -> dict[str, Any]:
    return {"name": name, "type": str(grader.__struct_config__.tag)}


def _by_grader(found: list[tuple[Role, RolloutStats]], grader: Grader) -> list[dict[str, Any]]:
    return [
        _named(name, part)
        | {f"{role}_reward_mean": stats.scores[name] for role, stats in found if name in stats.scores}
        for name, part in _parts(grader).items()
    ]


def _judges(found: list[tuple[Role, RolloutStats]], grader: Grader) -> list[dict[str, Any]]:
    """Tokens of each judge that one grader alone asks; those of others are in model_graders_token_usage."""
    asking = {
        name: part for name, part in _parts(grader).items() if isinstance(part, ScoreModelGrader | LabelModelGrader)
    }
    askers = Counter(part.model for part in asking.values())
    rows = []
    for name, part in asking.items():
        row = _named(name, part) | {"model": part.model}
        for role, stats in found if askers[part.model] == 1 else ():
            usage = stats.usage.get(part.model, JudgeUsage())
            for kind, count in (("prompt", usage.prompt_tokens), ("completion", usage.completion_tokens)):
                row[f"{role}_{kind}_tokens_count"] = count
                row[f"{role}_{kind}_tokens_mean"] = count / max(1, stats.samples)
        rows.append(row)
    return rows


def _failures(found: list[tuple[Role, RolloutStats]]) -> dict[str, float]:
    failures: dict[str, float] = {}
    for role, stats in found:
        for flag in FLAGS:
            failures[f"{role}_{flag}_count"] = stats.errors.get(flag, 0)
            failures[f"{role}_{flag}_mean"] = _share(stats, flag)
    return failures


def _share(stats: RolloutStats, flag: str) -> float:
    return stats.errors.get(flag, 0) / max(1, stats.samples)


def _tokens(stats: RolloutStats) -> int:
    """Return the tokens of all answers that have a reward, over which the mean is."""
    return round(stats.completion_tokens_mean * (stats.samples - stats.ungraded))


def _seconds(metrics: Metrics) -> dict[str, float]:
    """Return the seconds of a step's parts; what is neither sampling, grading nor evaluation counts as training."""
    train, valid = metrics.rollouts, metrics.valid_rollouts
    seconds = {
        "sampling": train.sampling_s if train else 0.0,
        "grading": train.grading_s if train else 0.0,
        "eval": valid.sampling_s + valid.grading_s if valid else 0.0,
    }
    if metrics.step_s is not None:
        others = metrics.step_s - sum(seconds.values())
        seconds |= {"training": max(0.0, others), "full_iteration": metrics.step_s}
    return {name: round(value, 3) for name, value in seconds.items()}


def _usage(found: list[tuple[Role, RolloutStats]]) -> dict[str, dict[str, int]]:
    """Return the tokens of judges by model, those of the validation file under the name that OpenAI has for them."""
    usage: dict[str, dict[str, int]] = {}
    for role, stats in found:
        name = "eval" if role == "valid" else role
        for model, tokens in stats.usage.items():
            counts = {
                f"{name}_{kind}_tokens": getattr(tokens, f"{kind}_tokens")
                for kind in ("prompt", "completion", "cached")
            }
            usage.setdefault(model, {}).update(counts)
    return usage
