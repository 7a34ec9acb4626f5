"""Lines of a file for DPO: a conversation and two answers to it, of which one is preferred."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from shared.chat_data import Message, check_messages
from shared.json_lines import check_text, read_lines

Output = Annotated[list[Message], Meta(min_length=1)]


class PreferenceInput(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What both answers reply to."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None


class PreferenceExample(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """One pair of answers. Each output ends with an assistant message; only that last one is compared."""

    input: PreferenceInput
    preferred_output: Output
    non_preferred_output: Output


_decode = msgspec.json.Decoder(PreferenceExample).decode


def read_preferences(path: Path) -> Iterator[tuple[int, PreferenceExample]]:
    """Yield (line number from 1, example) of a file that validate() has passed; blank lines are skipped."""
    for number, line in read_lines(path):
        yield number, _decode(check_text(line))


def check_preference(example: PreferenceExample) -> int:
    """Return how many messages are compared, which is 2; raises ValueError that says what is wrong."""
    check_messages(example.input.messages, "input.messages")
    check_output(example.preferred_output, "preferred_output")
    check_output(example.non_preferred_output, "non_preferred_output")
    return 2


def check_output(messages: list[Message], where: str) -> None:
    """Raise ValueError, which names the message, for messages that are no answer."""
    check_messages(messages, where)
    for position, message in enumerate(messages):
        if message.role not in ("assistant", "tool"):
            raise ValueError(f"{where}[{position}].role is '{message.role}'; expected assistant or tool")
    if messages[-1].role != "assistant":
        raise ValueError(f"{where} must end with an assistant message")
