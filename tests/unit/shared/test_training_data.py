"""What a training file may hold, and what is said of one that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import json_lines
from shared.chat_data import check_example
from shared.errors import InvalidTrainingData
from shared.preference_data import read_preferences
from shared.quick_check import quick_check
from shared.training_data import Census, ChatExample, read_examples, validate

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def written(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return path


def message_for(*messages: object) -> dict[str, object]:
    return {"messages": list(messages)}


def test_good_file_is_counted_and_blank_lines_are_not(tmp_path: Path) -> None:
    two = message_for(
        {"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {"role": "assistant", "content": "x", "weight": 0}, {"role": "user", "content": "r"},
        {"role": "assistant", "content": "y", "weight": 1}, {"role": "assistant", "content": "z"},
    )  # fmt: skip
    path = written(tmp_path, b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), b"", *[GOOD] * 9, two, b"  ")
    assert validate(path) == Census(examples=11, trained_messages=12)
    assert [number for number, _ in read_examples(path)] == [1, *range(3, 13)]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"{", "line 11: "),
        (b"[]", "line 11: Expected `object`"),
        (b"\xc3\x28", "line 11: not UTF-8 at byte 0"),
        (b'{"tools":' + b"[" * 100_000, "line 11: "),
        ({"messages": []}, "line 11: Expected `array` of length >= 1"),
        ({"prompt": "a", "completion": "b"}, "line 11: the file's first line has 'messages', and this line has"),
        (message_for({"role": "bot", "content": "x"}), "line 11: Invalid enum value 'bot' - at `$.messages[0].role`"),
        (message_for({"role": "user", "content": "x"}), "line 11: no assistant message"),
        (message_for({"role": "assistant"}), "line 11: messages[0] has no content"),
        (message_for({"role": "assistant", "content": "x", "weight": 0}), "every assistant message has weight 0"),
        (message_for({"role": "assistant", "content": "x", "weight": 0.5}), "$.messages[0].weight"),
        (
            message_for({"role": "user", "content": "x", "weight": 1}, {"role": "assistant", "content": "y"}),
            "weight is",
        ),
    ],
)
def test_bad_line_is_named_with_what_is_wrong(tmp_path: Path, line: object, complaint: str) -> None:
    with pytest.raises(InvalidTrainingData) as caught:
        validate(written(tmp_path, *[GOOD] * 10, line))
    assert complaint in caught.value.message
    assert caught.value.message.endswith("1 of 11 lines are invalid.")
    assert (caught.value.code, caught.value.param) == ("invalid_training_file", "training_file")


def test_validation_file_is_blamed_by_its_own_name(tmp_path: Path) -> None:
    assert validate(written(tmp_path, GOOD), role="validation").examples == 1
    with pytest.raises(InvalidTrainingData) as caught:
        validate(written(tmp_path), role="validation")
    assert (caught.value.code, caught.value.param) == ("invalid_validation_file", "validation_file")


def careful(line: bytes) -> int:
    """What the check that words the errors says of a line; 0 if it refuses it."""
    try:
        return check_example(msgspec.json.decode(json_lines.check_text(line), type=ChatExample))
    except (ValueError, RecursionError):
        return 0


def quick(line: bytes) -> int:
    try:
        return quick_check(line)
    except (ValueError, RecursionError):
        return 0


TEXT = st.sampled_from(["", "a", "}\n{", "é", "\u2028", '"'])
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "function", "bot"])},
    optional={
        "content": TEXT | st.none() | st.just([{"type": "text", "text": "x"}]) | st.just([]) | st.just(5),
        "weight": st.sampled_from([0, 1, 2, None]),
        "tool_calls": st.sampled_from([None, [], [CALL]]),
        "tool_call_id": st.just("1"), "name": st.just("n"), "refusal": st.just("no"),
    },
)  # fmt: skip
LINE = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE, max_size=3)},
    optional={"tools": st.just([{"type": "function"}]), "parallel_tool_calls": st.booleans(), "extra": st.just(1)},
)


@given(
    LINE | st.just(GOOD),
    st.lists(st.tuples(st.integers(0, 400), st.sampled_from([b"\xff", b" ", b"}", b"{", b",", b"\xc3"])), max_size=2),
)
def test_quick_look_accepts_nothing_that_the_careful_one_refuses(
    line: dict[str, Any], damage: list[tuple[int, bytes]]
) -> None:
    text = json.dumps(line, ensure_ascii=False).encode()
    for place, what in damage:
        text = text[:place] + what + text[place:]
    assert quick(text) in (0, careful(text))


@pytest.mark.parametrize(
    "line",
    [
        GOOD,
        message_for({"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 1}),
        message_for(
            {"role": "user", "content": "a"},
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "content": "5", "tool_call_id": "1"},
            {"role": "assistant", "content": "b"},
        ),
    ],
)  # fmt: skip
def test_ordinary_lines_need_only_a_quick_look(line: object) -> None:
    text = json.dumps(line).encode()
    assert quick_check(text) == careful(text) > 0


def test_line_is_numbered_rightly_wherever_the_blocks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [GOOD] * 40
    for block_bytes in (1, 7, 100, 1000):
        monkeypatch.setattr(json_lines, "BLOCK_BYTES", block_bytes)
        for bad in (0, 17, 39):
            path = written(tmp_path, *lines[:bad], b"", b"nonsense", *lines[bad:])
            with pytest.raises(InvalidTrainingData, match=rf"line {bad + 2}: .* 1 of 41 lines are invalid"):
                validate(path)
        assert validate(written(tmp_path, *lines)).examples == 40


def test_line_that_is_too_long_is_refused_and_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 200)
    monkeypatch.setattr(json_lines, "BLOCK_BYTES", 150)
    path = written(tmp_path, *[GOOD] * 10, message_for({"role": "user", "content": "x" * 2000}), *[GOOD] * 5)
    with pytest.raises(InvalidTrainingData, match=r"line 11: longer than 200 bytes\. 1 of 16 lines are invalid"):
        validate(path)


def pair(**changes: object) -> dict[str, object]:
    return {
        "input": {"messages": [{"role": "user", "content": "q"}], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [{"role": "assistant", "content": "good"}],
        "non_preferred_output": [{"role": "assistant", "content": "bad"}],
    } | changes


def test_good_pairs_are_counted_and_read(tmp_path: Path) -> None:
    path = written(tmp_path, *[pair()] * 10)
    assert validate(path, method="dpo") == Census(examples=10, trained_messages=20, format="preference")
    number, example = next(read_preferences(path))
    assert (number, example.input.messages[0].text) == (1, "q")
    assert (example.preferred_output[-1].text, example.non_preferred_output[-1].text) == ("good", "bad")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"{", "line 11: "),
        (b"\xc3\x28", "line 11: not UTF-8 at byte 0"),
        (GOOD, "line 11: a dpo job needs lines with 'input', 'preferred_output', 'non_preferred_output'; this one has"),
        ({"input": {"messages": [{"role": "user", "content": "q"}]}}, "missing required field `preferred_output`"),
        (pair(input={"messages": []}), "length >= 1 - at `$.input.messages`"),
        (pair(input={"messages": [{"role": "user"}]}), "input.messages[0] has no content"),
        (pair(preferred_output=[]), "length >= 1 - at `$.preferred_output`"),
        (pair(preferred_output=[{"role": "user", "content": "x"}]), "preferred_output[0].role is 'user'; expected"),
        (
            pair(non_preferred_output=[{"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "5"}]),
            "non_preferred_output must end with an assistant message",
        ),
        (pair(preferred_output=[{"role": "assistant"}]), "preferred_output[0] has no content"),
        (pair(extra=1), "unknown field `extra`"),
    ],
)  # fmt: skip
def test_bad_pair_is_named_with_what_is_wrong(tmp_path: Path, line: object, complaint: str) -> None:
    with pytest.raises(InvalidTrainingData) as caught:
        validate(written(tmp_path, *[pair()] * 10, line), method="dpo")
    assert complaint in caught.value.message
    assert caught.value.message.endswith("1 of 11 lines are invalid.")


def test_pairs_are_no_supervised_examples(tmp_path: Path) -> None:
    with pytest.raises(InvalidTrainingData) as caught:
        validate(written(tmp_path, *[pair()] * 10))
    assert "line 1: a supervised job needs lines with 'messages'; this one has 'input', " in caught.value.message
    assert "the format of a dpo, orpo or reward job. 10 of 10 lines are invalid." in caught.value.message


# --- labelled answers


ANSWERED = [{"role": "user", "content": "dog?"}, {"role": "assistant", "content": "animal"}]


def labelled(label: object = True, **changes: object) -> dict[str, object]:
    return {"messages": ANSWERED, "label": label, **changes}


def test_good_labelled_answers_are_counted_in_both_shapes(tmp_path: Path) -> None:
    split = {"prompt": ANSWERED[:1], "completion": ANSWERED[1:], "label": False}
    path = written(tmp_path, *[labelled()] * 9, split)
    assert validate(path, method="kto") == Census(examples=10, trained_messages=10, format="labelled")


@pytest.mark.parametrize("label", [True, False])
def test_file_with_one_label_is_refused_for_training_alone(tmp_path: Path, label: bool) -> None:
    path = written(tmp_path, *[labelled(label)] * 10)
    with pytest.raises(InvalidTrainingData, match=f"Every line has the label {str(label).lower()}.*both labels"):
        validate(path, method="kto")
    assert validate(path, method="kto", role="validation").examples == 10


def test_kto_s_validation_file_has_a_row_to_compare_with(tmp_path: Path) -> None:
    assert validate(written(tmp_path, *[labelled()] * 2), method="kto", role="validation").examples == 2
    with pytest.raises(InvalidTrainingData, match=r"has 1 example.*at least 2") as refused:
        validate(written(tmp_path, labelled()), method="kto", role="validation")
    assert refused.value.code == "invalid_validation_file"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ({"messages": ANSWERED}, "needs lines with 'label'; this one has 'messages', which is the format of a "),
        (pair(), "which is the format of a dpo, orpo or reward job"),
        (labelled("yes"), "Expected `bool`, got `str` - at `$.label`"),
        (labelled(1), "Expected `bool`, got `int` - at `$.label`"),
        (labelled(prompt=ANSWERED[:1]), "give the conversation once"),
        (labelled(messages=ANSWERED[1:]), "messages has one message"),
        (labelled(messages=ANSWERED[::-1]), "messages must end with an assistant message"),
        ({"label": True, "prompt": ANSWERED[:1]}, "expected messages, or prompt and completion"),
        ({"label": True, "prompt": ANSWERED[:1], "completion": ANSWERED[:1]}, "completion must end with an assistant"),
        ({"label": True, "prompt": "dog?", "completion": "animal"}, "at `$.prompt`"),
        (labelled(score=3), "unknown field `score`"),
    ],
)  # fmt: skip
def test_bad_label_is_named_with_what_is_wrong(tmp_path: Path, line: object, complaint: str) -> None:
    with pytest.raises(InvalidTrainingData) as caught:
        validate(written(tmp_path, *[labelled()] * 5, *[labelled(False)] * 5, line), method="kto")
    assert complaint in caught.value.message
    assert caught.value.message.endswith("1 of 11 lines are invalid.")


def test_labelled_answers_are_named_in_other_jobs(tmp_path: Path) -> None:
    with pytest.raises(InvalidTrainingData, match=r"an orpo job needs lines with 'input'.*the format of a kto job"):
        validate(written(tmp_path, *[labelled()] * 10), method="orpo")
    with pytest.raises(InvalidTrainingData, match="unknown field `label`"):
        validate(written(tmp_path, *[labelled()] * 10))


# --- questions for reinforcement


def question(**changes: object) -> dict[str, object]:
    return {"messages": ANSWERED[:1], "answer": {"unit": ["m"], "value": 3}, **changes}


def test_questions_may_have_any_other_key(tmp_path: Path) -> None:
    answered = [*ANSWERED, {"role": "tool", "content": "5", "tool_call_id": "1"}, {"role": "developer", "content": "d"}]
    path = written(tmp_path, *[question()] * 9, question(messages=answered, tools=[{"type": "function"}], label=None))
    assert validate(path, method="reinforcement") == Census(examples=10, trained_messages=10, format="prompt")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"{", "line 11: "),
        (b'{"messages": [{"role": "user", "content": "q"}], "answer": 1e999}', "line 11: Number out of range"),
        (question(messages=ANSWERED), "line 11: messages must end with what the model is to answer"),
        (question(messages=[]), "line 11: Expected `array` of length >= 1"),
        (question(messages=[{"role": "user"}]), "line 11: messages[0] has no content"),
        (question(tools={}), "at `$.tools`"),
        (pair(), "line 11: a reinforcement job needs lines with 'messages'; this one has 'input', "),
    ],
)
def test_bad_question_is_named_with_what_is_wrong(tmp_path: Path, line: object, complaint: str) -> None:
    with pytest.raises(InvalidTrainingData) as caught:
        validate(written(tmp_path, *[question()] * 10, line), method="reinforcement")
    assert complaint in caught.value.message
    assert caught.value.message.endswith("1 of 11 lines are invalid.")


def test_reinforcement_has_a_most_of_rows(tmp_path: Path) -> None:
    path = written(tmp_path, *[question()] * 1001)
    assert validate(path, method="reinforcement").examples == 1001
    with pytest.raises(InvalidTrainingData, match="has 1001 examples, but must have at most 1000") as refused:
        validate(path, method="reinforcement", role="validation")
    assert refused.value.code == "invalid_validation_file"
