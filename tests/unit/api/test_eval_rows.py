"""Rows of an eval's run: what of a schema is read, and which paths and answers there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.api.evals.item_schema import fault_of
from services.api.evals.questions import Questions, check_messages, given_answer
from services.api.evals.rows import Row, Rows, encoded
from shared.errors import InvalidRequest
from shared.eval_records import output_item_id, output_item_number
from shared.schemas.evals import CompletionsRun, CustomDataSource, EvalFileId, ItemReference

SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer"}, "kind": {"enum": ["a", "b"]}, "tags": {"type": "array", "items": {"type": "string"}},
        "deep": {"type": ["object", "null"], "required": ["x"]},
    },
    "required": ["n"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("item", "fault"),
    [
        ({"n": 1, "kind": "a", "tags": ["x"], "deep": {"x": None}}, None),
        ({"n": 1.0, "deep": None}, None),
        ({}, "'item.n' is missing"),
        ({"n": True}, "'item.n' is no integer"),
        ({"n": 1.5}, "'item.n' is no integer"),
        ({"n": 1, "kind": "c"}, "'item.kind' is none of the values that the schema lists"),
        ({"n": 1, "tags": ["x", 2]}, "'item.tags[1]' is no string"),
        ({"n": 1, "deep": {}}, "'item.deep.x' is missing"),
        ({"n": 1, "deep": 3}, "'item.deep' is no object or null"),
        ({"n": 1, "other": 2}, "'item.other' is not in the schema"),
    ],
)
def test_faults_are_named_by_their_place(item: dict[str, Any], fault: str | None) -> None:
    assert fault_of(item, SCHEMA, "item") == fault


def test_schemas_that_make_no_sense_ask_for_nothing() -> None:
    for schema in ({"type": 5}, {"required": 1, "properties": [], "enum": "x", "items": 7}, True, None):
        assert fault_of({"a": [1]}, schema, "item") is None


def test_rows_are_read_by_their_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\n{"item": {"n": 1}}\r\n  \n{"item": {"n": 2}, "sample": {"output_text": "\xc3\xa4"}}')
    rows = Rows(path, config=CustomDataSource(item_schema=SCHEMA), is_ours=False)
    assert len(rows) == 2 and rows.row(0).item == {"n": 1}
    assert given_answer(rows.row(1)).spoken["output_text"] == "ä"
    assert rows.row(0).sample is None and given_answer(rows.row(0)).spoken == {}
    rows.close()
    path.write_bytes(encoded([Row(item={"a": 1})]))
    assert not Rows(path, config=None, is_ours=True).row(0).is_answered
    path.write_bytes(b'{"item": {"n": "\xff"}}')
    with pytest.raises(InvalidRequest, match="line 1 is no valid JSON"):
        Rows(path, config=None, is_ours=False)


def asking(path: str) -> CompletionsRun:
    return CompletionsRun(source=EvalFileId(id="file-x"), model="m", input_messages=ItemReference(item_reference=path))


def test_messages_of_an_item_are_found_by_their_path() -> None:
    said = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    row = Row(item={"a": {"b": said}, "text": "hello", "number": 3})
    body, shown = Questions(asking("{{ item.a.b }}")).body_for(row)
    assert shown[0].content == "hi" and b'"type":"text"' in body
    assert Questions(asking("item.text")).body_for(row)[1][0].content == "hello"
    for path in ("item.number", "item.nothing", "item.a.b.c"):
        with pytest.raises(InvalidRequest, match="has no messages"):
            Questions(asking(path)).body_for(row)
    for path in ("sample.x", "item", "item.", "item..a", ""):
        with pytest.raises(InvalidRequest):
            check_messages(asking(path), are_stored=False)


@pytest.mark.parametrize(
    "wrong", ["outputitem_abc_01", "outputitem_abc_-1", "outputitem_abd_1", "outputitem_abc_", "1"]
)
def test_names_of_output_items_hold_the_rows_number(wrong: str) -> None:
    assert output_item_number("evalrun_abc", output_item_id("evalrun_abc", 12)) == 12
    assert output_item_number("evalrun_abc", wrong) is None


def test_messages_that_are_too_long_together_are_refused() -> None:
    template = {"type": "template", "template": [{"role": "user", "content": "{{ item.a }}"}] * 8}
    asked = {"type": "completions", "model": "m", "source": {"type": "file_id", "id": "file-x"}}
    questions = Questions(msgspec.convert(asked | {"input_messages": template}, CompletionsRun))
    questions.body_for(Row(item={"a": "a" * 500_000}))
    with pytest.raises(InvalidRequest) as refused:
        questions.body_for(Row(item={"a": "a" * 600_000}))
    assert refused.value.code == "message_too_long"
