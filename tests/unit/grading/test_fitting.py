"""Rows are held against the templates of a grader before anything is sampled."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.grading.fitting import unfit_row
from shared.schemas.graders import Grader

CHECK = {"type": "string_check", "name": "n", "input": "{{sample.output_text}}", "operation": "eq"}
JUDGE: dict[str, Any] = {"type": "score_model", "name": "j", "model": "m"}


def grader(**fields: Any) -> Grader:
    found: Grader = msgspec.convert(fields, Grader)
    return found


def rows(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join("" if line is None else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_first_row_without_what_is_named_is_told(tmp_path: Path) -> None:
    path = rows(tmp_path, {"a": {"b": [1]}, "c": None}, None, {"a": {"b": []}, "c": 1}, {"c": 1})
    assert unfit_row(path, grader(**CHECK, reference="{{item.c}}")) == ""
    assert unfit_row(path, grader(**CHECK, reference="plain")) == ""
    complaint = unfit_row(path, grader(**CHECK, reference="{{ item.a.b[0] }}"))
    assert complaint == "line 3: it has no item.a.b[0], which the grader's template names"
    assert unfit_row(path, grader(**CHECK, reference='{{item["a"]}}')).startswith("line 4: it has no item.a,")


def test_messages_to_judges_and_parts_are_looked_at(tmp_path: Path) -> None:
    path = rows(tmp_path, {"a": 1})
    content = [{"type": "input_text", "text": "{{item.a}}"}, "{{item.missing}}"]
    judge = JUDGE | {"input": [{"role": "user", "content": content}]}
    multi = {"type": "multi", "name": "m", "graders": {"x": {**CHECK, "reference": ""}, "y": judge}}
    for asked in (judge, multi | {"calculate_output": "x + y"}):
        assert "item.missing" in unfit_row(path, grader(**asked))


@pytest.mark.parametrize("source", ["def grade(sample, item):\n    return item['missing']\n"])
def test_programs_are_not_looked_into(tmp_path: Path, source: str) -> None:
    assert unfit_row(rows(tmp_path, {"a": 1}), grader(type="python", source=source)) == ""


def test_conversations_for_reward_models_are_looked_at(tmp_path: Path) -> None:
    path = rows(tmp_path, {"a": 1})
    taste = {"type": "selftune_reward", "name": "t", "model": "ft:m"}
    said = {"role": "assistant", "content": "{{sample.output_text}}"}
    asked = [{"role": "user", "content": "{{item.missing}}"}, said]
    assert "item.missing" in unfit_row(path, grader(**taste, input=asked))
    assert unfit_row(path, grader(**taste)) == unfit_row(path, grader(**taste, input=None)) == ""
