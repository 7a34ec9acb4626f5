"""Whether an object is a JSON Schema: the words that speak of a value's form have the form that draft 2020-12 gives
them. Words that are not known here are left to whoever reads the schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_MOST_DEPTH = 64
_OF_NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Words with an object of schemas."""
_OF_SEVERAL = ("anyOf", "oneOf", "allOf", "prefixItems")
"""Words with a list of schemas, of one at least."""
_OF_ONE = ("items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else")
_TEXTS = ("$ref", "pattern", "format", "title", "description")
_NUMBERS = (
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
)

Fault = tuple[str, str]
"""Where, and what."""


def fault_of_schema(schema: Any, where: str, depth: int = 0) -> Fault | None:
    """Say where something is no JSON Schema, and why, or return None."""
    return next(_faults(schema, where, depth), None)


def _faults(schema: Any, where: str, depth: int) -> Iterator[Fault]:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        yield where, "expected a JSON Schema, which is an object"
        return
    if depth > _MOST_DEPTH:
        yield where, f"it is nested more than {_MOST_DEPTH} levels deep"
        return
    yield from _faults_of_words(schema, where)
    for place, part in _parts(schema, where):
        yield from _faults(part, place, depth + 1)


def _faults_of_words(schema: dict[str, Any], where: str) -> Iterator[Fault]:
    types = schema.get("type", [])
    if not all(isinstance(one, str) and one in _TYPES for one in (types if isinstance(types, list) else [types])):
        yield f"{where}.type", f"expected one of {', '.join(sorted(_TYPES))}, or a list of them"
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(one, str) for one in required):
        yield f"{where}.required", "expected a list of names"
    if not isinstance(schema.get("enum", []), list):
        yield f"{where}.enum", "expected a list"
    for words, kinds, what in (
        (_OF_NAMES, dict, "an object of schemas"),
        (_OF_SEVERAL, list, "a list of schemas"),
        (_TEXTS, str, "a string"),
        (_NUMBERS, (int, float), "a number"),
    ):
        for word in words:
            given = schema.get(word)
            if word in schema and (not isinstance(given, kinds) or isinstance(given, bool) or given == []):
                yield f"{where}.{word}", f"expected {what}"


def _parts(schema: dict[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    """Yield the schemas in a schema whose words have their form, each with its place."""
    for word in _OF_NAMES:
        for name, part in schema.get(word, {}).items():
            yield f"{where}.{word}.{name[:100]}", part
    for word in _OF_SEVERAL:
        for number, part in enumerate(schema.get(word, [])):
            yield f"{where}.{word}[{number}]", part
    for word in _OF_ONE:
        if isinstance(several := schema.get(word), list) and word == "items":  # as prefixItems was called before
            yield from ((f"{where}.items[{number}]", part) for number, part in enumerate(several))
        elif word in schema:
            yield f"{where}.{word}", schema[word]
