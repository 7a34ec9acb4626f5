"""Input items of the Responses API in the one form in which they are stored, listed and repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from shared import ids
from shared.errors import InvalidRequest

Item = dict[str, Any]

MAX_ITEMS = 10_000
"""More are refused: each costs time before the model is asked."""

_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def input_items(given: msgspec.Raw) -> list[Item]:
    """Read `input`: a text, or a list of items. Each gets an id, and messages get a list of content parts.

    Raises InvalidRequest when it is neither, or too long a list.
    """
    value = msgspec.json.decode(given)
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InvalidRequest(
            "Invalid value for 'input': expected a text or a list of items.", code="invalid_value", param="input"
        )
    if len(value) > MAX_ITEMS:
        raise InvalidRequest(
            f"Invalid 'input': it has {len(value):,} items, and may have {MAX_ITEMS:,}.",
            code="array_above_max_length",
            param="input",
        )
    for place, item in enumerate(value):
        _check_names(item, place)
    return [_completed(item) for item in value]


def _check_names(item: Item, place: int) -> None:
    for name in ("type", "id"):
        if not isinstance(item.get(name, ""), str | None):
            raise InvalidRequest(
                f"Invalid type for 'input[{place}].{name}': expected a string.",
                code="invalid_type",
                param=f"input[{place}].{name}",
            )


def _completed(item: Item) -> Item:
    kind = item.get("type") or ("message" if "role" in item else "item_reference")
    named = {"type": kind, "id": item.get("id") or ids.new_item_id(_PREFIXES.get(kind, "item"))}
    if kind == "message":
        return {**item, **named, "status": item.get("status") or "completed", "content": _parts(item)}
    return {**item, **named, "status": item.get("status") or "completed"}


def _parts(message: Item) -> Any:
    content = message.get("content")
    if not isinstance(content, str):
        return content
    if message.get("role") == "assistant":
        return [{"type": "output_text", "text": content, "annotations": [], "logprobs": []}]
    return [{"type": "input_text", "text": content}]


def conversation(turns: Sequence[tuple[bytes, bytes]]) -> list[msgspec.Raw]:
    """Join the stored turns of a conversation: the items of each, then what it was answered with."""
    joined: list[msgspec.Raw] = []
    for items, response in turns:
        joined += msgspec.json.decode(items, type=list[msgspec.Raw])
        joined += msgspec.json.decode(response, type=_Answered).output
    return joined


class _Answered(msgspec.Struct):
    output: list[msgspec.Raw] = []
