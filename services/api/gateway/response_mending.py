"""What vLLM's response objects need to be as OpenAI's document says.

vLLM leaves `error` out, and writes `null` for fields that the document allows to be absent only.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

_encode = msgspec.json.encode
_NULL = Raw(b"null")
_PLAIN_TEXT = {"format": {"type": "text"}}
_INTERNAL = ("kv_transfer_params", "ec_transfer_params", "input_messages", "output_messages")
_NULLABLE = frozenset({"parameters", "strict"})
"""Fields of a tool that must be there even if null."""


class _Response(Struct):
    """The parts that are looked into."""

    text: dict[str, Any] | None = None
    output: list[dict[str, Any]] = []
    tools: list[dict[str, Raw]] = []


_decode_parts = msgspec.json.Decoder(_Response).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode


def mended_response(answer: bytes, *, previous: str | None, store: bool) -> bytes:
    """Return a response object that keeps to the document, with what only the gateway knows."""
    fields: dict[str, Any] = dict(_decode_fields(answer))
    parts = _decode_parts(answer)
    for name in (*_INTERNAL, "user"):
        if fields.get(name) == _NULL:
            del fields[name]
    fields |= {
        "error": fields.get("error"),
        "text": _PLAIN_TEXT if parts.text is None else _text(parts.text),
        "output": [_item(item) for item in parts.output],
        "tools": [_tool(tool) for tool in parts.tools],
        "previous_response_id": previous,
        "store": store,
    }
    return _encode(fields)


def _text(text: dict[str, Any]) -> dict[str, Any]:
    form = text.get("format")
    return _given(text | {"format": _given(form)} if isinstance(form, dict) else text)


def _item(item: dict[str, Any]) -> dict[str, Any]:
    content = item.get("content")
    if isinstance(content, list):
        item = item | {"content": [_part(part) if isinstance(part, dict) else part for part in content]}
    return _given(item)


def _part(part: dict[str, Any]) -> dict[str, Any]:
    required: dict[str, Any] = {"logprobs": []} if part.get("type") == "output_text" else {}
    return required | _given(part)


def _tool(tool: dict[str, Raw]) -> dict[str, Raw]:
    return {name: value for name, value in tool.items() if name in _NULLABLE or value != _NULL}


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
