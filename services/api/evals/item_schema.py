"""Whether a row's item is what its eval's `item_schema` says, as far as that speaks of what is there and of which type.

Read are `type`, `enum`, `properties`, `required`, `items` and `additionalProperties: false`; other words of JSON Schema
say nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_MOST_DEPTH = 32


def fault_of(value: Any, schema: Any, where: str, depth: int = 0) -> str | None:
    """Say what is wrong with a value, and where, or return None."""
    if not isinstance(schema, dict) or depth > _MOST_DEPTH:
        return None
    return next(_faults(value, schema, where, depth), None)


def _faults(value: Any, schema: Mapping[str, Any], where: str, depth: int) -> Iterator[str]:
    types = schema.get("type")
    wanted = [types] if isinstance(types, str) else types
    if isinstance(wanted, list) and not any(_is(value, one) for one in wanted):
        yield f"'{where}' is no {' or '.join(map(str, wanted))}"
        return
    if isinstance(schema.get("enum"), list) and value not in schema["enum"]:
        yield f"'{where}' is none of the values that the schema lists"
    if isinstance(value, dict):
        yield from _faults_of_object(value, schema, where, depth)
    if isinstance(value, list):
        for place, part in enumerate(value):
            if fault := fault_of(part, schema.get("items"), f"{where}[{place}]", depth + 1):
                yield fault


def _faults_of_object(value: Mapping[str, Any], schema: Mapping[str, Any], where: str, depth: int) -> Iterator[str]:
    required, known = schema.get("required"), schema.get("properties")
    known = known if isinstance(known, dict) else {}
    for name in required if isinstance(required, list) else []:
        if name not in value:
            yield f"'{where}.{name}' is missing"
    for name, part in value.items():
        if name in known:
            if fault := fault_of(part, known[name], f"{where}.{name}", depth + 1):
                yield fault
        elif schema.get("additionalProperties") is False:
            yield f"'{where}.{name[:100]}' is not in the schema"


def _is(value: Any, kind: Any) -> bool:
    if kind == "integer":
        return (isinstance(value, int) and not isinstance(value, bool)) or (
            isinstance(value, float) and value.is_integer()
        )
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    return kind not in types or isinstance(value, types[kind])
