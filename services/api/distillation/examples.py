"""A teacher's answer as an example to train on: only the answer is learned, not what was said before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from shared.chat_data import ChatExample, check_example
from shared.json_lines import check_text

_SILENT = frozenset({"annotations", "audio", "reasoning", "reasoning_content", "function_call", "refusal"})
"""What answers may have beside their text that is not learned; it is left out of the answer and of earlier ones."""


class Unusable(Exception):
    """A row that cannot be trained on; `reason` is one of those in docs/distillation.md."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Spoken(Struct, frozen=True):
    content: Any = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class _Choice(Struct, frozen=True):
    message: _Spoken = _Spoken()
    finish_reason: str | None = None


class _Completion(Struct, frozen=True):
    choices: list[_Choice] = []
    tools: list[dict[str, Any]] | None = None


_decode = msgspec.json.Decoder(_Completion).decode
_encode = msgspec.json.Encoder().encode


def answer_in(body: bytes) -> tuple[dict[str, Any], list[dict[str, Any]] | None]:
    """Return the message and the request's tools out of a stored completion, its first choice. Raises Unusable."""
    try:
        completion = _decode(body)
    except msgspec.MsgspecError as error:
        raise Unusable("unreadable") from error
    choice = completion.choices[0] if completion.choices else _Choice()
    if choice.message.refusal:
        raise Unusable("refused")
    answer = answer_of(choice.message.content, choice.message.tool_calls, finish_reason=choice.finish_reason or "")
    return answer, completion.tools or None


def answer_of(content: Any, calls: Sequence[dict[str, Any]] | None, *, finish_reason: str) -> dict[str, Any]:
    """Form the message that is learned. Raises Unusable for an answer that is cut off or says nothing."""
    if finish_reason == "length":
        raise Unusable("truncated")
    if finish_reason == "content_filter":
        raise Unusable("refused")
    if not calls and not (isinstance(content, str) and content.strip()):
        raise Unusable("empty")
    spoken: dict[str, Any] = {"role": "assistant"}
    if isinstance(content, str):
        spoken["content"] = content
    return spoken | {"tool_calls": list(calls)} if calls else spoken


def training_line(
    messages: Sequence[dict[str, Any]], answer: dict[str, Any], tools: list[dict[str, Any]] | None
) -> bytes:
    """Form a line of a file for supervised training. Raises Unusable for messages that it cannot hold: images, say."""
    example: dict[str, Any] = {"messages": [*map(_unlearned, messages), answer]}
    line = _encode(example | ({"tools": tools} if tools else {}))
    try:
        check_example(msgspec.json.decode(check_text(line), type=ChatExample))
    except (ValueError, RecursionError) as error:
        raise Unusable("not_trainable") from error
    return line + b"\n"


def said(messages: Sequence[dict[str, Any]], answer: dict[str, Any] | None) -> str:
    """Return the text of a conversation that tells rows apart: not the instructions, which many have in common."""
    spoken = [one for one in messages if one.get("role") not in ("system", "developer")]
    return "\n".join(_text(one) for one in (*spoken, *([answer] if answer else [])))


def _unlearned(message: dict[str, Any]) -> dict[str, Any]:
    is_answer = message.get("role") == "assistant"
    silent = _SILENT if is_answer else frozenset()
    kept = {name: value for name, value in message.items() if value is not None and name not in silent}
    return kept | {"weight": 0} if is_answer else kept


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        content = " ".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    calls = _encode(message["tool_calls"]).decode() if message.get("tool_calls") else ""
    return f"{content or ''} {calls}"
