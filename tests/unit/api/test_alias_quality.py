"""Windows of an alias's answers: what has drifted is told, and what has not stays silent."""

from __future__ import annotations

import random

import pytest

from services.api.aliases.quality import compared, means_of
from shared.drift.traits import Traits, traits_of
from shared.monitor_records import Sample
from shared.schemas.graders import StringCheckGrader
from shared.schemas.monitors import DriftThresholds, Monitor
from shared.schemas.quality import QualityWindow

TRIALS = 200
WINDOW = QualityWindow(id="1-0", model="m", starts_at=0, ends_at=10, samples=0, status="too_few_samples")
POLITE = StringCheckGrader(name="polite", input="", reference="", operation="eq")
MONITOR = Monitor(sample_rate=1.0, graders=[POLITE])
ORDERS, CODE = (
    text.split()
    for text in (
        "where is my order number package delivery late tracking parcel arrived address shipping",
        "function returns list error python compile loop variable stack class import debug",
    )
)


def questions(words: list[str]) -> list[Traits]:
    """Ask about a topic, each time with some favourite words of it, so that words of one question belong together."""
    drawing, found = random.Random(0), []
    for _ in range(500):
        favourites = drawing.sample(words, 4)
        asked = (drawing.choice(favourites if drawing.random() < 0.7 else words) for _ in range(drawing.randint(4, 16)))
        found.append(traits_of(" ".join(asked)))
    return found


ORDER_QUESTIONS, CODE_QUESTIONS = questions(ORDERS), questions(CODE)


def samples(
    drawing: random.Random, count: int, *, asked: list[Traits] = ORDER_QUESTIONS, quality: float = 0.9
) -> list[Sample]:
    return [
        Sample(
            id=str(number), at=number, model="m", since=1, traits=drawing.choice(asked),
            scores={"polite": float(drawing.random() < quality)},
        )
        for number in range(count)
    ]  # fmt: skip


def trial(seed: int, **changes: object) -> QualityWindow:
    """Compare a window with a training file and first answers of the same kind, save for what is changed."""
    drawing = random.Random(seed)
    training, first = (samples(drawing, count) for count in (120, 100))
    later = samples(drawing, 60, **changes)  # type: ignore[arg-type]
    return compared(WINDOW, later, first=first, training=[one.traits for one in training], monitor=MONITOR)


def test_traffic_that_has_not_drifted_raises_an_alarm_in_one_window_of_twenty_at_most() -> None:
    found = [trial(seed) for seed in range(TRIALS)]
    assert all(window.status == "compared" and len(window.inputs) == 8 for window in found)
    assert sum(bool(window.alarms) for window in found) <= 0.05 * TRIALS


def test_other_questions_and_worse_answers_are_told_each_for_itself() -> None:
    for seed in range(2):
        other = trial(seed, asked=CODE_QUESTIONS)
        assert {(one.measure, one.against) for one in other.inputs if one.alarm} >= {
            ("input_words", "training"), ("input_words", "first_samples"),
        }  # fmt: skip
        worse = trial(seed, quality=0.5)
        assert [one.alarm for one in worse.scores] == [True] and not any(one.alarm for one in worse.inputs)
        assert len(worse.alarms) == 1 and "the mean score of 'polite' fell from 0." in worse.alarms[0]


def test_better_answers_are_no_alarm() -> None:
    drawing = random.Random(1)
    window = compared(WINDOW, samples(drawing, 60, quality=1.0), first=samples(drawing, 100, quality=0.4), training=[],
                      monitor=MONITOR)  # fmt: skip
    assert window.scores[0].difference > 0.4 and not window.alarms


@pytest.mark.parametrize(
    ("count", "first", "status"),
    [(49, 100, "too_few_samples"), (50, 49, "no_baseline"), (50, 50, "compared")],
)
def test_too_little_says_nothing(count: int, first: int, status: str) -> None:
    drawing = random.Random(2)
    window = compared(WINDOW, samples(drawing, count), first=samples(drawing, first), training=[], monitor=MONITOR)
    assert (window.status, window.samples) == (status, count)
    assert bool(window.inputs) == bool(window.scores) == (status == "compared")


def test_a_difference_below_the_threshold_is_no_alarm_however_sure_it_is() -> None:
    limits = DriftThresholds(max_score_drop=0.5, max_word_distance=1.0, max_stability_index=10.0)
    drawing = random.Random(3)
    monitor = Monitor(sample_rate=1.0, graders=[POLITE], thresholds=limits)
    later = samples(drawing, 60, asked=CODE_QUESTIONS, quality=0.7)
    window = compared(WINDOW, later, first=samples(drawing, 100, quality=1.0), training=[], monitor=monitor)
    assert window.scores[0].p_value < 0.001 and not window.alarms


def test_answers_that_a_grader_could_not_grade_are_left_out_of_its_mean() -> None:
    drawing = random.Random(4)
    some = samples(drawing, 10, quality=1.0)
    ungraded = Sample(id="x", at=0, model="m", since=1, traits=some[0].traits)
    (mean,) = means_of([*some, ungraded], MONITOR)
    assert (mean.samples, mean.mean, mean.interval) == (10, 1.0, [1.0, 1.0])
    assert means_of([ungraded], MONITOR) == [] and means_of(some, None) == []
