"""A quick look at a block of training lines: most files are plain, and need no closer one.

The types below accept a part of what chat_data.ChatExample accepts: every message has content, none a weight or a call.
One call decodes the whole block, and which messages are trained on follows from their types alone, so the interpreter
does little for each line. What does not fit is not wrong: the careful check, line by line, decides and words the error.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from shared.chat_data import TextPart
from shared.json_lines import MAX_LINE_BYTES, count_lines


class _Turn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False, tag_field="role"):
    content: str | Annotated[list[TextPart], Meta(min_length=1)]
    name: str | None = None


class _System(_Turn, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False, tag="system"):
    pass


class _Developer(_Turn, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False, tag="developer"):
    pass


class _User(_Turn, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False, tag="user"):
    pass


class _Assistant(_Turn, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False, tag="assistant"):
    pass


class _Line(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    messages: Annotated[list[_System | _Developer | _User | _Assistant], Meta(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None


_decode_lines = msgspec.json.Decoder(_Line).decode_lines


def quick_check(block: bytes) -> tuple[int, int] | None:
    """Return (examples, messages trained on) of a block that is plain and good, None for any other."""
    try:
        lines = _decode_lines(block)
    except (ValueError, RecursionError):
        return None
    # A value may reach over several lines, and lines may be blank.
    if len(lines) != count_lines(block) or len(block) > MAX_LINE_BYTES:
        return None
    counts = [list(map(type, line.messages)).count(_Assistant) for line in lines]
    return (len(lines), sum(counts)) if all(counts) else None
