"""A window of an alias's answers beside what was before: what has drifted, and what only seems so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

from shared.drift.measures import difference_of_means, input_shifts, mean_interval
from shared.drift.traits import Traits
from shared.monitor_records import Sample
from shared.schemas.monitors import DriftThresholds, Monitor
from shared.schemas.quality import InputDrift, QualityWindow, ScoreDrift, ScoreMean

Against: TypeAlias = Literal["training", "first_samples"]

_MEASURES = 4
_NAMES = {
    "input_length": "the length of what is asked",
    "input_language": "the language of what is asked",
    "input_characters": "the characters of what is asked",
    "input_words": "the words of what is asked",
}
_WHAT = {"training": "the training file", "first_samples": "the first answers"}


def compared(
    window: QualityWindow,
    samples: Sequence[Sample],
    *,
    first: Sequence[Sample],
    training: Sequence[Traits],
    monitor: Monitor,
) -> QualityWindow:
    """Fill a window in. A baseline or window with fewer than `min_samples` says nothing.

    All comparisons of a window together alarm by chance in as many windows as the monitor allows (Bonferroni).
    """
    limits = monitor.thresholds
    before: dict[Against, Sequence[Traits]] = {"training": training, "first_samples": [one.traits for one in first]}
    known = {name: traits for name, traits in before.items() if len(traits) >= limits.min_samples}
    pairs = {grader.name: (_scores(first, grader.name), _scores(samples, grader.name)) for grader in monitor.graders}
    usable = {name: pair for name, pair in pairs.items() if min(map(len, pair)) >= limits.min_samples}
    status: Literal["compared", "too_few_samples", "no_baseline"] = "compared"
    if len(samples) < limits.min_samples:
        status, known, usable = "too_few_samples", {}, {}
    elif not known and not usable:
        status = "no_baseline"
    level = limits.false_alarms / max(1, _MEASURES * len(known) + len(usable))
    asked = [one.traits for one in samples]
    inputs = [one for name, traits in known.items() for one in _inputs(traits, asked, name, limits, level)]
    scores = [_score(name, *pair, limits, level) for name, pair in usable.items()]
    return QualityWindow(
        id=window.id,
        model=window.model,
        starts_at=window.starts_at,
        ends_at=window.ends_at,
        samples=len(samples),
        status=status,
        inputs=inputs,
        scores=scores,
        alarms=[
            *map(_input_words, (one for one in inputs if one.alarm)),
            *(_score_words(s) for s in scores if s.alarm),
        ],
    )


def means_of(samples: Sequence[Sample], monitor: Monitor | None) -> list[ScoreMean]:
    """Return the mean score of each grader that could grade any."""
    names = [] if monitor is None else [grader.name for grader in monitor.graders]
    found = {name: _scores(samples, name) for name in names}
    return [_mean(name, scores) for name, scores in found.items() if scores]


def _inputs(
    before: Sequence[Traits], after: Sequence[Traits], against: Against, limits: DriftThresholds, level: float
) -> Iterator[InputDrift]:
    for measure, shift in input_shifts(before, after).items():
        threshold = limits.max_word_distance if measure == "input_words" else limits.max_stability_index
        yield InputDrift(
            measure=measure,
            against=against,
            value=round(shift.value, 4),
            threshold=threshold,
            p_value=shift.p_value,
            alarm=shift.value > threshold and shift.p_value < level,
        )


def _score(
    grader: str, before: Sequence[float], after: Sequence[float], limits: DriftThresholds, level: float
) -> ScoreDrift:
    found, mean = difference_of_means(before, after), _mean(grader, after)
    return ScoreDrift(
        grader=grader,
        samples=len(after),
        mean=mean.mean,
        interval=mean.interval,
        mean_before=sum(before) / len(before),
        difference=found.value,
        difference_interval=[found.lower, found.upper],
        p_value=found.p_lower,
        alarm=-found.value > limits.max_score_drop and found.p_lower < level,
    )


def _scores(samples: Sequence[Sample], grader: str) -> list[float]:
    return [one.scores[grader] for one in samples if grader in one.scores]


def _mean(grader: str, scores: Sequence[float]) -> ScoreMean:
    mean, lower, upper = mean_interval(scores)
    return ScoreMean(grader=grader, samples=len(scores), mean=mean, interval=[lower, upper])


def _input_words(one: InputDrift) -> str:
    return (
        f"{_NAMES[one.measure]} has drifted from {_WHAT[one.against]}: {one.value:.3g}, where {one.threshold:g} is the "
        f"threshold (p = {one.p_value:.2g})"
    )


def _score_words(one: ScoreDrift) -> str:
    return (
        f"the mean score of '{one.grader}' fell from {one.mean_before:.3f} to {one.mean:.3f} "
        f"({one.difference_interval[0]:+.3f} to {one.difference_interval[1]:+.3f}, p = {one.p_value:.2g})"
    )
