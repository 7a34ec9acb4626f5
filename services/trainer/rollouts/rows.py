"""Lines of a file as what is asked of the model, and as what graders see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from services.trainer.failures import TrainingFailed
from shared.chat_data import Message
from shared.json_lines import read_lines
from shared.reinforcement_data import PromptExample

_decode_prompt = msgspec.json.Decoder(PromptExample).decode
_decode_item = msgspec.json.Decoder(dict[str, Any]).decode


class Row(Struct, frozen=True, kw_only=True):
    """One line."""

    line: int
    messages: list[dict[str, Any]]
    """In chat completions' form, with texts in place of parts: a chat template writes them as in training."""
    tools: list[dict[str, Any]] | None
    item: dict[str, Any]
    """The line itself."""


def read_rows(path: Path, lines: Sequence[int]) -> list[Row]:
    """Read lines, counted from 1, in the order that is asked for. Blocks.

    Raises TrainingFailed for one that is not there or no prompt: the file is another one than was validated.
    """
    wanted, found = set(lines), dict[int, Row]()
    for number, line in read_lines(path):
        if number in wanted:
            found[number] = _row(number, line)
        if len(found) == len(wanted):
            break
    if missing := wanted - found.keys():
        raise TrainingFailed(f"Line {min(missing)} of {path.name} is not there any more.", code="file_changed")
    return [found[number] for number in lines]


def _row(number: int, line: bytes) -> Row:
    try:
        prompt, item = _decode_prompt(line), _decode_item(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TrainingFailed(f"Line {number} is no prompt: {error}", code="file_changed") from error
    return Row(line=number, messages=list(map(_said, prompt.messages)), tools=prompt.tools, item=item)


def _said(message: Message) -> dict[str, Any]:
    """Give the server what training gives the chat template, less what only training looks at."""
    said: dict[str, Any] = {"role": message.role, "content": message.text or message.refusal or ""}
    for name in ("name", "tool_call_id", "tool_calls", "function_call"):
        if (value := getattr(message, name)) is not None:
            said[name] = msgspec.to_builtins(value)
    return said
