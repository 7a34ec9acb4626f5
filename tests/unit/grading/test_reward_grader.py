"""The grader that asks a reward model: what it asks, what becomes of the score, and what it is refused for."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from shared.chat_data import Message
from shared.errors import InvalidRequest
from shared.grading.means import JudgeFailed, NotFinite, Unresponsive, Unscorable
from shared.grading.run import Grade, Means, check, grade
from shared.grading.samples import sample_of
from shared.schemas.graders import Grader

REWARD: dict[str, Any] = {"type": "selftune_reward", "name": "taste", "model": "ft:base:org:taste:1"}
ASKED = {"messages": [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Capital?"}]}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "{{ sample.output_text }}"}


class Scoring:
    """A reward model that gives one score, or fails, and remembers what it was asked."""

    def __init__(self, outcome: float | JudgeFailed) -> None:
        self.outcome = outcome
        self.asked: list[tuple[str, list[Message]]] = []

    async def score(self, model: str, conversation: Sequence[Message]) -> float:
        self.asked.append((model, list(conversation)))
        if isinstance(self.outcome, JudgeFailed):
            raise self.outcome
        return self.outcome


def graded(outcome: float | JudgeFailed, item: dict[str, Any] | None = None, **changes: Any) -> tuple[Grade, Scoring]:
    sound, scoring = msgspec.convert(REWARD | changes, Grader), Scoring(outcome)
    check(sound, where="grader")
    means = Means(reward_models=scoring)
    done = asyncio.run(grade(sound, item=ASKED if item is None else item, sample=sample_of("Paris"), means=means))
    return done, scoring


def flags(done: Grade) -> set[str]:
    return {name for name in done.errors.__struct_fields__ if getattr(done.errors, name) is True}


def test_row_s_messages_and_the_answer_are_scored() -> None:
    done, scoring = graded(-3.5)
    assert (done.reward, done.passed, done.type, done.usage, flags(done)) == (-3.5, None, "selftune_reward", {}, set())
    asked = [*msgspec.convert(ASKED["messages"], list[Message]), Message(role="assistant", content="Paris")]
    assert scoring.asked == [("ft:base:org:taste:1", asked)]


def test_own_messages_are_filled_in() -> None:
    given = [{"role": "user", "content": "Q: {{ item.q }}", "type": "message"}, ANSWER]
    done, scoring = graded(1.0, {"q": "why?"}, input=given, pass_threshold=1)
    assert done.passed is True
    assert [(one.role, one.content) for one in scoring.asked[0][1]] == [("user", "Q: why?"), ("assistant", "Paris")]


@pytest.mark.parametrize(
    ("score", "changes", "reward"),
    [
        (0.0, {"squash": True}, 0.5),
        (2.0, {"squash": True}, 1 / (1 + math.exp(-2.0))),
        (-1e9, {"squash": True}, 0.0),
        (1e9, {"squash": True}, 1.0),
        (2.0, {"squash": True, "range": [-1, 3]}, -1 + 4 / (1 + math.exp(-2.0))),
        (0.0, {"squash": True, "range": [-1.7e308, 1.7e308]}, 0.0),
        (7.5, {"range": [-1, 3]}, 3.0),
        (-7.5, {"range": [-1, 3]}, -1.0),
        (2.5, {"range": [-1, 3]}, 2.5),
    ],
)
def test_score_is_brought_into_its_range(score: float, changes: dict[str, Any], reward: float) -> None:
    done, _ = graded(score, **changes)
    assert done.reward == pytest.approx(reward, abs=1e-12) and not done.errors


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ({}, ""),
        ({"messages": "hello"}, "Expected `array`"),
        ({"messages": []}, "begins with no message that asks"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "begins with no message that asks"),
        (
            {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]},
            "ends with an answer already",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "item.messages[0]"),
        ({"messages": [{"role": "user"}]}, "item.messages[0] has no content"),
    ],
)
def test_row_without_a_conversation_is_an_error_of_the_grade(item: dict[str, Any], told: str) -> None:
    done, scoring = graded(1.0, item)
    assert (done.reward, flags(done), scoring.asked) == (0.0, {"invalid_variable_error"}, [])
    assert told in (done.errors.model_grader_server_error_details or "")


def test_row_that_is_too_long_is_an_error_of_the_grade() -> None:
    long = {"messages": [{"role": "user", "content": "x" * (4 << 20)}]}
    done, scoring = graded(1.0, long)
    assert (done.reward, flags(done), scoring.asked) == (0.0, {"other_error"}, [])


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (JudgeFailed("no trainer"), {"model_grader_server_error"}),
        (Unresponsive("not in time"), {"model_grader_server_error", "unresponsive_reward_error"}),
        (Unscorable("too long"), {"other_error"}),
        (NotFinite("no number"), {"model_grader_parse_error"}),
    ],
)
def test_what_goes_wrong_with_the_model_is_told(failure: JudgeFailed, expected: set[str]) -> None:
    done, _ = graded(failure, squash=True, pass_threshold=0)
    assert (done.reward, done.passed, flags(done)) == (0.0, False, expected)
    assert done.errors.model_grader_server_error_details == str(failure)


def test_without_the_means_it_says_so_and_in_a_formula_it_counts() -> None:
    sound = msgspec.convert(REWARD, Grader)
    alone = asyncio.run(grade(sound, item=ASKED, sample=sample_of("Paris"), means=Means()))
    assert alone.errors.model_grader_server_error_details == "no reward model can be asked here"
    both = {"type": "multi", "graders": {"a": REWARD, "b": REWARD | {"squash": True}}, "calculate_output": "a + b"}
    multi = msgspec.convert(both, Grader)
    check(multi, where="grader")
    means = Means(reward_models=Scoring(0.0))
    done = asyncio.run(grade(multi, item=ASKED, sample=sample_of("Paris"), means=means))
    assert (done.reward, done.sub_rewards) == (0.5, {"a": 0.0, "b": 0.5})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"range": [1, 1]}, "grader.range"),
        ({"input": [{"role": "user", "content": "{{ other }}"}, ANSWER]}, "grader.input[0].content"),
        ({"input": [ANSWER, ANSWER]}, "grader.input[0].role"),
        ({"input": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "grader.input"),
    ],
)
def test_grader_that_could_not_grade_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(msgspec.convert(REWARD | changes, Grader), where="grader")
    assert caught.value.param == field
