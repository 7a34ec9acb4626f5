"""Drift: against values from tables, and by trying out what is planted and what is not."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from shared.drift import measures
from shared.drift.measures import chi_square_tail, difference_of_means, divergence, input_shifts, stability
from shared.drift.traits import Traits, asked_text, traits_of

TRIALS = 200
LEVEL = 0.0025
"""Of each of the four measures where one window in a hundred may be a false alarm."""
ORDERS = "where is my order number package delivery late tracking parcel arrived address shipping"
CODE = "function returns list error python compile loop variable stack class import debug"
TOPICS = {topic: text.split() for topic, text in (("orders", ORDERS), ("code", CODE))}


def conversation(drawing: random.Random, topic: str = "orders", length: float = 12) -> Traits:
    """Note a question of a topic; each prefers some of the topic's words, so its words belong together."""
    words = TOPICS[topic]
    favourites = drawing.sample(words, 4)
    count = max(2, round(drawing.lognormvariate(0, 0.5) * length))
    return traits_of(" ".join(drawing.choice(favourites if drawing.random() < 0.7 else words) for _ in range(count)))


def many(drawing: random.Random, count: int, **options: object) -> list[Traits]:
    return [conversation(drawing, **options) for _ in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "degrees", "expected"),
    [(3.841, 1, 0.05), (5.991, 2, 0.05), (7.815, 3, 0.05), (16.919, 9, 0.05), (23.209, 10, 0.01), (0.0, 4, 1.0)],
)
def test_chi_square_tail_is_the_tables(value: float, degrees: int, expected: float) -> None:
    assert chi_square_tail(value, degrees) == pytest.approx(expected, abs=2e-4)


def test_stability_is_the_index_of_the_classes() -> None:
    found = stability(["a"] * 5000 + ["b"] * 5000, ["a"] * 3000 + ["b"] * 7000)
    assert found.value == pytest.approx(0.2 * 0.5108 + 0.2 * 0.3365, abs=2e-3), "(p - q) ln(p / q), added up"
    assert found.p_value < 1e-9
    assert stability(["a"] * 50, ["a"] * 50).p_value == 1.0


def test_classes_with_few_are_put_together() -> None:
    rare = [f"rare {n}" for n in range(4)]
    assert stability(["a"] * 96 + rare, ["a"] * 100).p_value > LEVEL, "four singles are no change"


def test_few_beside_many_are_exchanged_as_few_whichever_side_they_are_on(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[int] = []
    really = measures._added

    def noting(blocks: Sequence[Sequence[int]]) -> list[int]:
        added.append(len(blocks))
        return really(blocks)

    monkeypatch.setattr(measures, "_added", noting)
    drawing = random.Random(4)
    few, lots = many(drawing, 10, topic="code"), many(drawing, 400)
    for before, after in ((few, lots), (lots, few)):
        added.clear()
        found = divergence(before, after)
        assert found.p_value < LEVEL and found.value > 0.3
        assert sorted(added)[-2:] == [10, 410], "all of them once, else as many as the smaller side has"


def test_traits_tell_languages_and_scripts_apart() -> None:
    assert traits_of("What is the weather in the city, and how can you tell?").language == "en"
    assert traits_of("Wie ist das Wetter, und was ist mit der Stadt?").language == "de"
    assert traits_of("Какая сегодня погода?").language == "cyrillic"
    assert traits_of("今日の天気は").language in ("cjk", "hiragana")
    assert traits_of("12 + 30 = 42").language == "none"
    assert traits_of("").length == 0 and traits_of("").symbols == 0.0
    assert traits_of("a1b2").symbols == 0.5
    assert traits_of("\ud800 half a pair").words, "what is no Unicode text is counted, too"


def test_only_users_are_listened_to() -> None:
    parts = [{"type": "text", "text": "two"}, {"type": "image_url"}, None]
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "one"}, {"role": "assistant"}]
    assert asked_text([*messages, {"role": "user", "content": parts}, "odd"]) == "one\ntwo"


def test_planted_drift_is_found() -> None:
    for seed in range(4):
        drawing = random.Random(seed)
        before = many(drawing, 200)
        other_topic = [conversation(drawing, "code" if n % 3 == 0 else "orders") for n in range(80)]
        assert divergence(before, other_topic).p_value < LEVEL, "a third speaks of something else"
        longer = input_shifts(before, many(drawing, 80, length=30))
        assert longer["input_length"].p_value < LEVEL and longer["input_length"].value > 0.25
    german = [traits_of("Wo ist das Paket, und was ist mit der Lieferung?")] * 30
    assert input_shifts(before, many(drawing, 50) + german)["input_language"].p_value < LEVEL


def test_the_same_conversations_give_the_same_result() -> None:
    drawing = random.Random(3)
    before, after = many(drawing, 100), many(drawing, 40)
    assert input_shifts(before, after) == input_shifts(before, after)


def test_scores_that_stay_the_same_are_left_alone() -> None:
    def alarmed(seed: int) -> bool:
        drawing = random.Random(seed)
        first, later = ([float(drawing.random() < 0.9) for _ in range(count)] for count in (200, 60))
        return difference_of_means(first, later).p_lower < 0.01

    assert sum(map(alarmed, range(TRIALS))) <= 0.05 * TRIALS


def test_scores_that_fall_are_found() -> None:
    def found(seed: int) -> bool:
        drawing = random.Random(seed)
        first = [float(drawing.random() < 0.9) for _ in range(200)]
        return difference_of_means(first, [float(drawing.random() < 0.65) for _ in range(100)]).p_lower < 0.01

    assert sum(map(found, range(TRIALS))) >= 0.95 * TRIALS


def test_interval_of_a_difference_holds_it() -> None:
    found = difference_of_means([0.5] * 50 + [0.7] * 50, [0.4] * 50 + [0.6] * 50)
    assert found.value == pytest.approx(-0.1)
    assert found.lower < -0.1 < found.upper < 0
    same = difference_of_means([1.0] * 20, [1.0] * 20)
    assert (same.value, same.lower, same.upper, same.p_lower) == (0.0, 0.0, 0.0, 1.0)
