"""Graders of every kind: what they are refused for, and the grade that comes of whatever a sample does to them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from shared.errors import InvalidRequest
from shared.grading.run import Answer, Grade, JudgeFailed, Means, check, grade
from shared.grading.samples import sample_of
from shared.schemas.graders import Grader, GraderErrors, SamplingParams

EQ = {"type": "string_check", "name": "eq", "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}",
      "operation": "eq"}  # fmt: skip
FUZZY = {"type": "text_similarity", "name": "fuzzy", "input": "{{ sample.output_text }}",
         "reference": "{{ item.answer }}", "evaluation_metric": "fuzzy_match"}  # fmt: skip
SCORE = {"type": "score_model", "name": "score", "model": "judge",
         "input": [{"role": "user", "content": "{{ sample.output_text }}"}]}  # fmt: skip
LABEL = {"type": "label_model", "name": "label", "model": "judge", "labels": ["good", "bad"],
         "passing_labels": ["good"], "input": [{"role": "developer", "content": "{{ item.answer }}"}]}  # fmt: skip
PYTHON = {"type": "python", "name": "py", "source": "def grade(sample, item):\n    return 0.5\n"}


class Said:
    """A judge that says what it was made with, and remembers what it was asked."""

    def __init__(self, text: str, refusal: str | None = None) -> None:
        self.text, self.refusal = text, refusal
        self.asked: list[tuple[str, Any, SamplingParams, Any]] = []

    async def ask(self, model: str, messages: Any, sampling: SamplingParams, response_format: Any) -> Answer:
        self.asked.append((model, messages, sampling, response_format))
        return Answer(text=self.text, refusal=self.refusal, prompt_tokens=10, completion_tokens=3, cached_tokens=4)


class Silent:
    """A judge that is not there."""

    async def ask(self, *_: Any) -> Answer:
        raise JudgeFailed("no answer within 1 s")


class Ended(msgspec.Struct):
    """What came of a program."""

    score: float | None = None
    problem: str = ""
    details: str = ""


class Caged:
    """A cage in which every program ends alike."""

    def __init__(self, outcome: Ended) -> None:
        self.outcome = outcome

    async def grade(self, source: str, sample: dict[str, Any], item: dict[str, Any]) -> Ended:
        assert "def grade" in source and sample["output_text"] and isinstance(item, dict)
        return self.outcome


def graded(grader: dict[str, Any], text: str = "Paris", item: dict[str, Any] | None = None, **means: Any) -> Grade:
    sound = msgspec.convert(grader, Grader)
    check(sound, where="grader")
    item = {"answer": "Paris"} if item is None else item
    return asyncio.run(grade(sound, item=item, sample=sample_of(text), means=Means(**means)))


def flags(done: Grade) -> set[str]:
    return {name for name in done.errors.__struct_fields__ if getattr(done.errors, name) is True}


@pytest.mark.parametrize(
    ("operation", "text", "reward"),
    [
        ("eq", "Paris", 1.0), ("eq", "paris", 0.0), ("ne", "Paris", 0.0), ("ne", "Rome", 1.0), ("neq", "Rome", 1.0),
        ("like", "It is Paris.", 1.0), ("like", "It is paris.", 0.0), ("like", "Par", 0.0), ("ilike", "IS PARIS", 1.0),
        ("ilike", "Rome", 0.0),
    ],
)  # fmt: skip
def test_string_check_compares(operation: str, text: str, reward: float) -> None:
    done = graded(EQ | {"operation": operation}, text)
    assert (done.reward, done.passed, done.name, done.type) == (reward, reward == 1.0, "eq", "string_check")
    assert flags(done) == set() and not done.usage and not done.sub_rewards


def test_a_threshold_says_what_passes() -> None:
    assert graded(FUZZY).passed is None
    assert graded(FUZZY | {"pass_threshold": 0.8}, "Parisian").passed is False
    assert graded(FUZZY | {"pass_threshold": 0.7}, "Parisian").passed is True
    assert graded(FUZZY | {"pass_threshold": 0.0, "input": "{{ item.gone }}"}).passed is False  # it failed


@pytest.mark.parametrize(
    ("template", "flag"),
    [
        ("{{ item.gone }}", "invalid_variable_error"),
        ("{{ sample.output_tools[0] }}", "invalid_variable_error"),
        ("{{ sample.output_json.x }}", "sample_parse_error"),
        ("{{ item.long }}" * 11, "other_error"),
    ],
)
def test_what_a_sample_lacks_is_an_error_of_the_grade(template: str, flag: str) -> None:
    done = graded(EQ | {"input": template}, item={"answer": "x", "long": "y" * 100_000})
    assert (done.reward, done.passed, flags(done)) == (0.0, False, {flag})


def test_texts_too_long_to_compare_are_an_error_of_the_grade() -> None:
    done = graded(FUZZY, "x" * 100_001)
    assert (done.reward, flags(done)) == (0.0, {"other_error"})


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ('{"steps": [], "result": 0.25}', 0.25), ('{"result": 7}', 1.0), ('{"result": -3.5}', 0.0),
        ('{"result": 1}', 1.0),
    ],
)  # fmt: skip
def test_score_is_clipped_to_its_range(answer: str, reward: float) -> None:
    judge = Said(answer)
    done = graded(SCORE | {"sampling_params": {"temperature": 0, "max_completions_tokens": 50}}, judge=judge)
    assert (done.reward, done.sampled_model_name, flags(done)) == (reward, "judge", set())
    assert msgspec.to_builtins(done.usage) == {
        "judge": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13, "cached_tokens": 4}
    }
    ((model, messages, sampling, wanted),) = judge.asked
    assert (model, messages) == ("judge", [{"role": "user", "content": "Paris"}])
    assert (sampling.temperature, sampling.max_completions_tokens) == (0, 50)
    assert wanted["json_schema"]["strict"] and wanted["json_schema"]["schema"]["required"] == ["steps", "result"]


def test_score_has_the_range_that_is_asked_for() -> None:
    assert graded(SCORE | {"range": [-1, 10]}, judge=Said('{"result": 42}')).reward == 10.0
    assert graded(SCORE | {"range": [-1, 10]}, judge=Said('{"result": -42}')).reward == -1.0


@pytest.mark.parametrize(
    "answer",
    [
        "", "0.5", "good", '{"score": 1}', '{"result": "0.5"}', '{"result": null}', '{"result": true}',
        '{"result": NaN}', '{"result": 1e999}', '{"result": [1]}', '{"result": 0.5', "[1]", "[" * 100_000, "\ud800",
    ],
)  # fmt: skip
def test_nonsense_of_a_judge_is_an_error_of_the_grade(answer: str) -> None:
    for grader in (SCORE, LABEL):
        done = graded(grader, judge=Said(answer))
        assert (done.reward, flags(done)) == (0.0, {"model_grader_parse_error"}), answer
        assert done.usage["judge"].total_tokens == 13  # it was paid for


def test_label_passes_if_it_is_one_of_those() -> None:
    judge = Said('{"result": "good"}')
    done = graded(LABEL, judge=judge)
    assert (done.reward, done.passed) == (1.0, True)
    assert judge.asked[0][1] == [{"role": "system", "content": "Paris"}]
    assert judge.asked[0][3]["json_schema"]["schema"]["properties"]["result"]["enum"] == ["good", "bad"]
    assert graded(LABEL, judge=Said('{"result": "bad"}')).passed is False
    assert flags(graded(LABEL, judge=Said('{"result": "Good"}'))) == {"model_grader_parse_error"}


def test_a_judge_that_refuses_or_is_away_is_an_error_of_the_grade() -> None:
    assert flags(graded(SCORE, judge=Said("", refusal="I will not."))) == {"model_grader_refusal_error"}
    away = graded(SCORE, judge=Silent())
    assert flags(away) == {"model_grader_server_error"}
    assert away.errors.model_grader_server_error_details == "no answer within 1 s"
    assert flags(graded(SCORE)) == {"model_grader_server_error"}


def test_parts_of_messages_become_chat_completions_parts() -> None:
    judge = Said('{"result": 1}')
    content = [
        "plain {{ item.answer }}",
        {"type": "input_text", "text": "asked"},
        {"type": "output_text", "text": "{{ sample.output_text }}"},
        {"type": "input_image", "image_url": "{{ item.url }}", "detail": "low"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ]
    item = {"answer": "a", "url": "https://example.com/a.png"}
    graded(SCORE | {"input": [{"role": "user", "content": content, "type": "message"}]}, item=item, judge=judge)
    assert judge.asked[0][1][0]["content"] == [
        {"type": "text", "text": "plain a"},
        {"type": "text", "text": "asked"},
        {"type": "text", "text": "Paris"},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ]


@pytest.mark.parametrize(
    ("outcome", "reward", "expected", "kind"),
    [
        (Ended(score=0.75), 0.75, set(), None),
        (Ended(problem="runtime_error", details="KeyError: 'x'"), 0.0, {"python_grader_runtime_error"}, None),
        (Ended(problem="invalid_value", details="it returned nan"), 0.0, {"python_grader_runtime_error"}, None),
        (Ended(problem="memory", details="2 GB"), 0.0, {"python_grader_server_error"}, "memory"),
        (Ended(problem="timeout", details="2 min"), 0.0, {"python_grader_server_error", "unresponsive_reward_error"},
         "timeout"),
    ],
)  # fmt: skip
def test_python_gives_its_score_or_its_problem(
    outcome: Ended, reward: float, expected: set[str], kind: str | None
) -> None:
    done = graded(PYTHON, cage=Caged(outcome))
    assert (done.reward, flags(done), done.errors.python_grader_server_error_type) == (reward, expected, kind)
    assert done.errors.python_grader_runtime_error_details == (outcome.details or None)


def test_python_without_a_cage_is_an_error_of_the_grade() -> None:
    done = graded(PYTHON)
    assert (flags(done), done.errors.python_grader_server_error_type) == ({"python_grader_server_error"}, "unavailable")


def test_multi_combines_its_parts() -> None:
    parts = {"a": EQ, "b": SCORE, "c": LABEL}
    multi = {"type": "multi", "graders": parts, "calculate_output": "a + 2 * b + c ^ 2"}
    judge = Said('{"result": 0.25}')
    done = graded(multi, judge=judge)
    assert (done.name, done.type, done.passed) == ("multi", "multi", None)
    assert done.sub_rewards == {"a": 1.0, "b": 0.25, "c": 0.0}
    assert (done.reward, flags(done)) == (0.0, {"model_grader_parse_error"})  # the label is none
    del parts["c"]
    done = graded(multi | {"calculate_output": "a + 2 * b"}, judge=judge)
    assert (done.reward, flags(done), done.usage["judge"].prompt_tokens) == (1.5, set(), 10)


def test_reward_that_no_sum_can_hold_is_an_error_of_the_grade() -> None:
    large = {"type": "multi", "name": "m", "graders": {"a": EQ}, "calculate_output": "a * 1e308"}
    done = graded(large)
    assert (done.reward, done.sub_rewards, flags(done)) == (0.0, {"a": 1.0}, {"other_error"})
    assert done.errors.python_grader_runtime_error_details == "The reward 1e+308 is further from 0 than 1e+30"
    part = {"type": "multi", "name": "m", "graders": {"a": PYTHON}, "calculate_output": "min(a, 1)"}
    done = graded(part, cage=Caged(Ended(score=-1e308)))
    assert (done.reward, done.sub_rewards, flags(done)) == (0.0, {"a": 0.0}, {"other_error"})
    assert graded(large | {"calculate_output": "-1e30 * a"}).reward == -1e30


def test_multi_may_be_of_a_single_grader() -> None:
    done = graded({"type": "multi", "name": "m", "graders": EQ, "calculate_output": "10 * eq"})
    assert (done.reward, done.sub_rewards) == (10.0, {"eq": 1.0})


def test_multi_without_a_number_as_result_is_an_error_of_the_grade() -> None:
    multi = {"type": "multi", "name": "m", "graders": {"a": EQ}, "calculate_output": "1 / (a - 1)"}
    assert flags(graded(multi)) == {"formula_parse_error"}
    assert graded(multi, "Rome").reward == -1.0


def test_a_part_that_failed_fails_the_whole() -> None:
    parts = {"a": EQ, "b": EQ | {"input": "{{ item.gone }}"}, "c": SCORE}
    done = graded({"type": "multi", "graders": parts, "calculate_output": "a / b / c"}, judge=Silent())
    assert (done.reward, done.sub_rewards["a"]) == (0.0, 1.0)
    assert flags(done) == {"invalid_variable_error", "model_grader_server_error"}


@pytest.mark.parametrize(
    ("grader", "field", "words"),
    [
        (EQ | {"input": "{{ secret }}"}, "grader.input", "does not begin with item or sample"),
        (EQ | {"reference": "{{ item.x"}, "grader.reference", "has no '}}'"),
        (FUZZY | {"evaluation_metric": "cosine"}, "grader.evaluation_metric", "no embedding model"),
        (FUZZY | {"input": "{{ item.x() }}"}, "grader.input", "more than a path"),
        (SCORE | {"range": [1, 0]}, "grader.range", "1 is not below 0"),
        (SCORE | {"range": [1, 1]}, "grader.range", "least, greatest"),
        (SCORE | {"input": [{"role": "user", "content": ["ok", "{{ x }}"]}]}, "grader.input[0].content[1]", "'x'"),
        (SCORE | {"input": [{"role": "user", "content": {"type": "input_text", "text": "{{"}}]},
         "grader.input[0].content", "has no"),
        (LABEL | {"passing_labels": ["fine"]}, "grader.passing_labels", "'fine' is none of the labels"),
        (LABEL | {"labels": ["good", "good"]}, "grader.labels", "twice"),
        (PYTHON | {"source": "def grade(sample, item)\n  return 1"}, "grader.source", "line 1"),
        (PYTHON | {"source": "score = 1"}, "grader.source", "no `def grade"),
        (PYTHON | {"source": "\x00"}, "grader.source", "cannot be read|null byte"),
        (PYTHON | {"source": "(" * 5000}, "grader.source", "cannot be read|nested|closed"),
        ({"type": "multi", "graders": {}, "calculate_output": "1"}, "grader.graders", "0 graders"),
        ({"type": "multi", "graders": {"a": EQ}, "calculate_output": "b"}, "grader.calculate_output", "'b' is none"),
        ({"type": "multi", "graders": {"a": EQ}, "calculate_output": "a."}, "grader.calculate_output", "arithmetic"),
        ({"type": "multi", "graders": {"a b": EQ}, "calculate_output": "1"}, "grader.graders", "'a b'"),
        ({"type": "multi", "graders": {"a": EQ | {"input": "{{ x }}"}}, "calculate_output": "a"},
         "grader.graders.a.input", "'x'"),
        ({"type": "multi", "graders": {"a": EQ | {"operation": "is"}}, "calculate_output": "a"},
         "grader.graders.a.operation", "'is'"),
        ({"type": "multi", "graders": {"a": EQ | {"more": 1}}, "calculate_output": "a"}, "grader.graders.a", "unknown"),
        ({"type": "multi", "graders": {"a": 7}, "calculate_output": "a"}, "grader.graders.a", "object"),
        ({"type": "multi", "graders": {"a": {"type": "multi", "graders": {"b": EQ}, "calculate_output": "b"}},
          "calculate_output": "a"}, "grader.graders.a", "no part of another"),
    ],
)  # fmt: skip
def test_graders_that_could_not_grade_are_refused(grader: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        check(msgspec.convert(grader, Grader), where="grader")
    assert caught.value.param == field


@pytest.mark.parametrize(
    "grader",
    [
        EQ | {"unknown": 1}, EQ | {"operation": "is"}, {**EQ, "name": ""}, FUZZY | {"evaluation_metric": "rouge_6"},
        SCORE | {"input": []}, SCORE | {"range": [0]}, SCORE | {"input": [{"role": "tool", "content": "x"}]},
        SCORE | {"sampling_params": {"max_completions_tokens": 0}}, SCORE | {"sampling_params": {"best_of": 2}},
        LABEL | {"labels": []}, PYTHON | {"source": "#" * 256_001}, {"type": "other"}, {},
    ],
)  # fmt: skip
def test_graders_of_another_shape_are_none(grader: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(grader, Grader)


@pytest.mark.parametrize("grader", [EQ, FUZZY, SCORE | {"range": None}, LABEL, PYTHON | {"image_tag": "2025-05-08"}])
def test_graders_are_echoed_as_they_were_sent(grader: dict[str, Any]) -> None:
    for sent in (grader, {"type": "multi", "name": "m", "graders": {"a": grader}, "calculate_output": "a"}):
        assert json.loads(msgspec.json.encode(msgspec.convert(sent, Grader))) == sent


def test_texts_that_are_too_long_together_are_asked_of_no_judge() -> None:
    judge = Said('{"result": 1}')
    message = {"role": "user", "content": ["{{ item.answer }}"] * 8}
    done = graded(SCORE | {"input": [message]}, item={"answer": "a" * 1_000_000}, judge=judge)
    assert done.errors.other_error and not judge.asked
    parts = {f"part_{place}": SCORE | {"name": f"part_{place}", "input": [message]} for place in range(8)}
    multi = {"type": "multi", "name": "all", "graders": parts, "calculate_output": "part_0"}
    done = graded(multi, item={"answer": "a" * 300_000}, judge=judge)
    assert done.errors.other_error and len(judge.asked) == 1, "the parts share the room"


def test_texts_that_would_take_long_are_not_compared() -> None:
    assert graded(FUZZY, "a" * 90_000, item={"answer": "a" * 11_000}).errors == GraderErrors()
    assert graded(FUZZY, "a" * 90_000, item={"answer": "a" * 12_000}).errors.other_error
