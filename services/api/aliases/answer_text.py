"""What an answer says, whichever endpoint it comes from, whole or streamed: its text and the tools that it calls."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from services.api.gateway.chat_pieces import ChatPieces
from services.api.gateway.sse_pieces import data_of
from shared.schemas.aliases import ShadowToolCall

_CALL_CHARS = 32
"""What a call takes beside its name and arguments: `{"name":"","arguments":""}`."""
_LAST_EVENTS = ("response.completed", "response.incomplete", "response.failed")


class _Function(Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class _Call(Struct, frozen=True):
    function: _Function = _Function()


class _Message(Struct, frozen=True):
    content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(Struct, frozen=True):
    text: str | None = None
    message: _Message = _Message()


class _Part(Struct, frozen=True):
    """A part of a response's item, or of a message's content."""

    type: str = ""
    text: str | None = None
    name: str | None = None
    input: Any = None


class _Item(Struct, frozen=True):
    type: str = ""
    content: list[_Part] | None = None
    name: str | None = None
    arguments: str | None = None


class _Answer(Struct, frozen=True):
    """The answers of all endpoints; each has one of these."""

    choices: list[_Choice] = []
    output: list[_Item] = []
    content: list[_Part] = []


class _Event(Struct, frozen=True):
    type: str = ""
    delta: Any = None
    choices: list[_Choice] = []
    response: msgspec.Raw = msgspec.Raw(b"null")


_decode = msgspec.json.Decoder(_Answer).decode
_decode_event = msgspec.json.Decoder(_Event).decode


class Said(Struct, frozen=True):
    """What an answer says."""

    text: str = ""
    tool_calls: list[ShadowToolCall] = []


def shortened(found: Said, most: int) -> Said:
    """Cut what an answer says to `most` characters: first its text, then the calls, whose JSON counts, too."""
    text, left = found.text[:most], most - len(found.text)
    calls: list[ShadowToolCall] = []
    for call in found.tool_calls:
        left -= _CALL_CHARS
        if left <= 0:
            break
        name = call.name[:left]
        arguments = call.arguments[: left - len(name)]
        calls.append(ShadowToolCall(name=name, arguments=arguments))
        left -= len(name) + len(arguments)
    return Said(text, calls)


def said(endpoint: str, answer: bytes, *, is_stream: bool) -> Said:
    """Read an answer, or as much of it as there is; of several choices the first.

    What cannot be read says nothing; of Anthropic's streams only the text is read.
    """
    try:
        if not is_stream:
            return _whole(answer)
        events = [data for event in answer.split(b"\n\n") if (data := data_of(event)) not in (None, b"[DONE]")]
        return _chat(events) if endpoint == "/v1/chat/completions" else _other(events)
    except msgspec.MsgspecError:
        return Said()


def _whole(answer: bytes) -> Said:
    found = _decode(answer)
    if found.choices:
        first = found.choices[0]
        calls = [_called(call.function.name, call.function.arguments) for call in first.message.tool_calls or []]
        return Said(first.text or first.message.content or "", calls)
    parts = [*found.content, *(part for item in found.output for part in item.content or [])]
    calls = [_called(item.name, item.arguments) for item in found.output if item.type == "function_call"]
    calls += [_called(part.name, msgspec.json.encode(part.input).decode()) for part in parts if part.type == "tool_use"]
    return Said("".join(part.text or "" for part in parts if part.type in ("text", "output_text")), calls)


def _chat(events: list[bytes]) -> Said:
    pieces = ChatPieces()
    for data in events:
        try:
            pieces.add(data)
        except msgspec.MsgspecError:  # the last one of a stream that was cut
            continue
    return _whole(pieces.completion())


def _other(events: list[bytes]) -> Said:
    texts: list[str] = []
    for data in events:
        try:
            event = _decode_event(data)
        except msgspec.MsgspecError:
            continue
        if event.type in _LAST_EVENTS:
            return _whole(bytes(event.response))
        if event.choices:
            texts.append(event.choices[0].text or "")
        elif event.type == "content_block_delta" and isinstance(event.delta, dict):
            texts.append(str(event.delta.get("text", "")))
        elif event.type == "response.output_text.delta" and isinstance(event.delta, str):
            texts.append(event.delta)
    return Said("".join(texts))


def _called(name: str | None, arguments: str | None) -> ShadowToolCall:
    return ShadowToolCall(name=name or "", arguments=arguments or "")
