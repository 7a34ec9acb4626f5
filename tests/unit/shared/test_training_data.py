"""What a training file may hold, and what is said of one that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.errors import InvalidTrainingData
from shared.training_data import Census, read_examples, validate

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
        ({"prompt": "a", "completion": "b"}, "line 11: Object contains unknown field `prompt`"),
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
