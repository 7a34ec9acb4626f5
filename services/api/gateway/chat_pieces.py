"""A streamed chat completion put together again: the object that the same request without `stream` would have got."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct, field


class _Function(Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(Struct):
    index: int = 0
    id: str | None = None
    type: str | None = None
    function: _Function = field(default_factory=_Function)


class _Delta(Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Logprobs(Struct):
    content: list[msgspec.Raw] | None = None


class _Choice(Struct):
    index: int
    delta: _Delta = field(default_factory=_Delta)
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Chunk(Struct):
    id: str = ""
    created: int = 0
    model: str = ""
    choices: list[_Choice] = []
    usage: msgspec.Raw = msgspec.Raw(b"null")
    system_fingerprint: str | None = None
    service_tier: str | None = None


_decode = msgspec.json.Decoder(_Chunk).decode


class _Growing:
    """One choice while it is streamed."""

    def __init__(self) -> None:
        self.texts: dict[str, list[str]] = {"content": [], "refusal": [], "reasoning": []}
        self.calls: dict[int, dict[str, Any]] = {}
        self.logprobs: list[msgspec.Raw] = []
        self.finish_reason: str | None = None

    def add(self, choice: _Choice) -> None:
        for name, texts in self.texts.items():
            if text := getattr(choice.delta, name):
                texts.append(text)
        for call in choice.delta.tool_calls or []:
            self._add_call(call)
        if choice.logprobs is not None:
            # Copies, since each would otherwise keep its chunk alive.
            self.logprobs += [one.copy() for one in choice.logprobs.content or []]
        self.finish_reason = choice.finish_reason or self.finish_reason

    def _add_call(self, call: _ToolCall) -> None:
        whole = self.calls.setdefault(
            call.index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        whole["id"] = call.id or whole["id"]
        whole["function"]["name"] += call.function.name or ""
        whole["function"]["arguments"] += call.function.arguments or ""

    def public(self, index: int) -> dict[str, Any]:
        text = {name: "".join(texts) or None for name, texts in self.texts.items()}
        message: dict[str, Any] = {"role": "assistant", "content": text["content"], "refusal": text["refusal"]}
        if text["content"] is None and not self.calls:
            message["content"] = ""
        if text["reasoning"] is not None:
            message["reasoning"] = text["reasoning"]
        if self.calls:
            message["tool_calls"] = [call for _, call in sorted(self.calls.items())]
        logprobs = {"content": self.logprobs, "refusal": None} if self.logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": self.finish_reason}


class ChatPieces:
    """Takes the data of each event; `completion` is the whole."""

    def __init__(self) -> None:
        self._choices: dict[int, _Growing] = {}
        self._last = _Chunk()
        self._usage: msgspec.Raw | None = None

    def add(self, data: bytes) -> None:
        """Take one chunk. Raises msgspec.MsgspecError when it is none."""
        chunk = _decode(data)
        if chunk.id:
            self._last = chunk
        if bytes(chunk.usage) != b"null":
            self._usage = chunk.usage.copy()
        for choice in chunk.choices:
            self._choices.setdefault(choice.index, _Growing()).add(choice)

    @property
    def complete(self) -> bool:
        """Whether every choice has come to its end."""
        return bool(self._choices) and all(choice.finish_reason for choice in self._choices.values())

    def completion(self) -> bytes:
        """Form the whole completion as JSON."""
        last = self._last
        whole = {
            "id": last.id,
            "object": "chat.completion",
            "created": last.created,
            "model": last.model,
            "choices": [choice.public(index) for index, choice in sorted(self._choices.items())],
            "service_tier": last.service_tier,
        }
        optional = {"system_fingerprint": last.system_fingerprint, "usage": self._usage}
        return msgspec.json.encode(whole | {name: value for name, value in optional.items() if value is not None})
