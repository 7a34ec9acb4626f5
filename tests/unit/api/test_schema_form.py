"""What counts as a JSON Schema, and where one that is none is at fault."""

from __future__ import annotations

from functools import reduce
from typing import Any

import jsonschema
import pytest

from services.api.jobs.schema_form import fault_of_schema

DEEP: dict[str, Any] = reduce(lambda inner, _: {"items": inner}, range(65), {})


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": ["object", "null"], "properties": {"type": {"const": 1}}, "required": ["type"]},
        {"type": "array", "items": {"$ref": "#/$defs/x"}, "$defs": {"x": {"enum": [1, None]}}, "minItems": 0},
        {"anyOf": [True, {"pattern": "^a", "maxLength": 3}], "additionalProperties": False, "x-own": []},
        {"exclusiveMinimum": 0.5, "not": {"allOf": [{"format": "date", "title": "t"}]}},
    ],
)
def test_schemas_are_taken(schema: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert fault_of_schema(schema, "s") is None


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ({"type": "objekt"}, "s.type"),
        ({"type": ["object", 1]}, "s.type"),
        ({"type": None}, "s.type"),
        ({"properties": []}, "s.properties"),
        ({"properties": {"a": {"type": {}}}}, "s.properties.a.type"),
        ({"properties": {"a": 1}}, "s.properties.a"),
        ({"required": "a"}, "s.required"),
        ({"anyOf": [{}, {"enum": 1}]}, "s.anyOf[1].enum"),
        ({"oneOf": []}, "s.oneOf"),
        ({"items": "string"}, "s.items"),
        ({"items": {"minLength": True}}, "s.items.minLength"),
        ({"$ref": 1}, "s.$ref"),
    ],
)
def test_fault_is_named_by_its_place(schema: Any, where: str) -> None:
    with pytest.raises(jsonschema.SchemaError):
        jsonschema.Draft202012Validator.check_schema(schema)
    fault = fault_of_schema(schema, "s")
    assert fault is not None and fault[0] == where


def test_lists_of_items_are_read_as_earlier_drafts_have_them() -> None:
    assert fault_of_schema({"items": [{}, {"type": "null"}]}, "s") is None
    assert fault_of_schema({"items": [{}, 1]}, "s") == ("s.items[1]", "expected a JSON Schema, which is an object")


def test_depth_has_an_end() -> None:
    assert fault_of_schema(DEEP["items"], "s") is None
    fault = fault_of_schema(DEEP, "s")
    assert fault is not None and fault[1] == "it is nested more than 64 levels deep"
