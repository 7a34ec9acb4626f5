"""Running a grader: whatever its kind, whatever a sample does to it, a Grade comes out."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import add
from typing import Any

from msgspec import Struct, UnsetType
from msgspec.structs import replace

from shared.grading import formula
from shared.grading.checking import check
from shared.grading.formula import FormulaError
from shared.grading.means import Answer, Cage, Judge, JudgeFailed, Means, Outcome
from shared.grading.model_graders import MAX_DETAIL_CHARS, judged, scored
from shared.grading.parts import parts_of
from shared.grading.score import MAX_REWARD, Namespaces, Score, failed
from shared.grading.similarity import MAX_CHARS, MAX_PAIRS, similarity
from shared.grading.templates import Room, TooLong, UnknownVariable, render
from shared.schemas.graders import (
    Grader,
    GraderErrors,
    JudgeUsage,
    LabelModelGrader,
    MultiGrader,
    PythonGrader,
    RewardModelGrader,
    ScoreModelGrader,
    StringCheckGrader,
    TextSimilarityGrader,
)

__all__ = ["Answer", "Cage", "Grade", "Judge", "JudgeFailed", "Means", "Outcome", "check", "grade"]

_comparing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="similarity")
"""A thread of its own: however many texts wait to be compared, uploads find the shared ones free."""
_NO_CAGE = "Python graders are turned off on this server"
_CAGE_AWAY = "unavailable"


class Grade(Struct, frozen=True, kw_only=True):
    """What a grader made of a sample."""

    name: str
    type: str
    reward: float
    """From -MAX_REWARD to MAX_REWARD; 0 when `errors` has any."""
    passed: bool | None
    """None where the grader has nothing that says what passes."""
    sub_rewards: dict[str, float]
    """Of a multi grader: each grader's score by its name in the formula."""
    errors: GraderErrors
    usage: dict[str, JudgeUsage]
    """By judge."""
    label: str
    """What a label_model's judge has said; else empty."""
    sampled_model_name: str | None
    """The judge; None without one, or with several."""
    seconds: float

    @property
    def is_away(self) -> bool:
        """Whether a judge or the cage was away, so that nothing is said of the sample."""
        return self.errors.model_grader_server_error or self.errors.python_grader_server_error_type == _CAGE_AWAY


async def grade(grader: Grader, *, item: dict[str, Any], sample: dict[str, Any], means: Means) -> Grade:
    """Grade one sample with a grader that check() has found sound.

    What sample, item, judge or program cause is in the grade's `errors`; nothing is raised for it.
    """
    start = time.perf_counter()
    score = await _score(grader, {"item": item, "sample": sample}, means, Room())
    reward = 0.0 if score.errors else score.reward
    return Grade(
        name=grader.name,
        type=str(grader.__struct_config__.tag),
        reward=reward,
        passed=_passed(grader, reward, failed=bool(score.errors)),
        sub_rewards=score.parts,
        errors=score.errors,
        usage=score.usage,
        label=score.label,
        sampled_model_name=next(iter(score.usage)) if len(score.usage) == 1 else None,
        seconds=time.perf_counter() - start,
    )


async def _score(grader: Grader, namespaces: Namespaces, means: Means, room: Room) -> Score:
    """Grade; all parts of a multi grader share the room that their texts take."""
    return _bounded(await _unbounded(grader, namespaces, means, room))


def _bounded(score: Score) -> Score:
    if abs(score.reward) <= MAX_REWARD or score.errors:
        return score
    details = f"The reward {score.reward:g} is further from 0 than {MAX_REWARD:g}"
    return replace(
        score, reward=0.0, errors=GraderErrors(other_error=True, python_grader_runtime_error_details=details)
    )


async def _unbounded(grader: Grader, namespaces: Namespaces, means: Means, room: Room) -> Score:
    try:
        match grader:
            case StringCheckGrader():
                return Score(reward=_compared(grader, namespaces, room))
            case TextSimilarityGrader():
                return await _similar(grader, namespaces, room)
            case ScoreModelGrader() | LabelModelGrader():
                return await judged(grader, namespaces, means.judge, room)
            case PythonGrader():
                return await _run(grader, namespaces, means.cage)
            case RewardModelGrader():
                return await scored(grader, namespaces, means.reward_models, room)
            case MultiGrader():
                return await _combined(grader, namespaces, means, room)
    except UnknownVariable as error:
        in_json = error.path[:2] == ("sample", "output_json") and "output_json" not in namespaces["sample"]
        return failed(sample_parse_error=True) if in_json else failed(invalid_variable_error=True)
    except TooLong:
        return failed(other_error=True)


def _passed(grader: Grader, reward: float, *, failed: bool) -> bool | None:
    """A grade that failed passes nowhere."""
    match grader:
        case StringCheckGrader() | LabelModelGrader():
            return reward == 1.0
        case MultiGrader():
            return None
    threshold = grader.pass_threshold
    return None if threshold is None or isinstance(threshold, UnsetType) else reward >= threshold and not failed


def _compared(grader: StringCheckGrader, namespaces: Namespaces, room: Room) -> float:
    text, reference = render(grader.input, namespaces, room), render(grader.reference, namespaces, room)
    match grader.operation:
        case "eq":
            return float(text == reference)
        case "ne" | "neq":
            return float(text != reference)
        case "like":
            return float(reference in text)
        case "ilike":
            return float(reference.casefold() in text.casefold())


async def _similar(grader: TextSimilarityGrader, namespaces: Namespaces, room: Room) -> Score:
    text, reference = render(grader.input, namespaces, room), render(grader.reference, namespaces, room)
    if max(len(text), len(reference)) > MAX_CHARS or len(text) * len(reference) > MAX_PAIRS:
        return failed(other_error=True)
    loop = asyncio.get_running_loop()
    reward = await loop.run_in_executor(_comparing, similarity, grader.evaluation_metric, text, reference)
    return Score(reward=reward)


async def _run(grader: PythonGrader, namespaces: Namespaces, cage: Cage | None) -> Score:
    if cage is None:
        return _cage_failed(_CAGE_AWAY, _NO_CAGE)
    outcome = await cage.grade(grader.source, namespaces["sample"], namespaces["item"])
    if outcome.score is not None:
        return Score(reward=outcome.score)
    if outcome.problem in ("runtime_error", "invalid_value"):
        details = outcome.details[:MAX_DETAIL_CHARS]
        return failed(python_grader_runtime_error=True, python_grader_runtime_error_details=details)
    return _cage_failed(outcome.problem, outcome.details)


def _cage_failed(problem: str, details: str) -> Score:
    """The contract has a text for the program's errors alone; what the cage has to say goes there, too."""
    return failed(
        python_grader_server_error=True,
        python_grader_server_error_type=problem,
        python_grader_runtime_error_details=details[:MAX_DETAIL_CHARS],
        unresponsive_reward_error=problem == "timeout",
    )


async def _combined(grader: MultiGrader, namespaces: Namespaces, means: Means, room: Room) -> Score:
    """Grade with all parts at a time; where one failed, the whole has."""
    parts = parts_of(grader)
    scores = await asyncio.gather(*(_score(part, namespaces, means, room) for part in parts.values()))
    rewards = {name: 0.0 if score.errors else score.reward for name, score in zip(parts, scores, strict=True)}
    errors = reduce(_merged, (score.errors for score in scores))
    combined = Score(errors=errors, usage=_total(scores), parts=rewards)
    try:
        return replace(combined, reward=formula.compute(grader.calculate_output, rewards))
    except FormulaError:
        # What a part's failure does to the formula is no error of the formula's.
        return combined if errors else replace(combined, errors=replace(errors, formula_parse_error=True))


def _merged(one: GraderErrors, other: GraderErrors) -> GraderErrors:
    """Every flag that either has, and the first of each text."""
    return GraderErrors(**{name: getattr(one, name) or getattr(other, name) for name in one.__struct_fields__})


def _total(scores: list[Score]) -> dict[str, JudgeUsage]:
    models = dict.fromkeys(model for score in scores for model in score.usage)
    return {model: reduce(add, (score.usage[model] for score in scores if model in score.usage)) for model in models}
