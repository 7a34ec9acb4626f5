"""A quick look at a line of a supervised file: most are good, and need no closer one.

Each role has a type of its own, which accepts a part of what chat_data.Message accepts, so that decoding does most of
the checks and the interpreter few. What does not fit is not wrong: the careful check decides, and words the error.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from shared.chat_data import TextPart, ToolCall
from shared.json_lines import MAX_LINE_BYTES

Text = str | Annotated[list[TextPart], Meta(min_length=1)]


class _Turn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False, tag_field="role"):
    content: Text
    name: str | None = None


class _System(_Turn, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False, tag="system"):
    pass


class _Developer(_Turn, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False, tag="developer"):
    pass


class _User(_Turn, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False, tag="user"):
    pass


class _Tool(_Turn, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False, tag="tool"):
    tool_call_id: str | None = None


class _Assistant(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False, tag_field="role", tag="assistant"
):
    content: Text | None = None
    name: str | None = None
    weight: Literal[0, 1] | None = None
    tool_calls: Annotated[list[ToolCall], Meta(min_length=1)] | None = None


class _Line(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    messages: Annotated[list[_System | _Developer | _User | _Tool | _Assistant], Meta(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None


_decode = msgspec.json.Decoder(_Line).decode


def quick_check(line: bytes) -> int:
    """Count the messages that are trained on; 0, or a ValueError, if the line needs a closer look."""
    trained = 0
    for message in _decode(line).messages:
        if type(message) is _Assistant:
            if message.content is None and message.tool_calls is None:
                return 0
            if message.weight != 0:
                trained += 1
    return trained if len(line) <= MAX_LINE_BYTES else 0
