"""Conversations as they stand in data files: messages in OpenAI's chat format, one JSON object a line."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct


class TextPart(Struct, frozen=True, kw_only=True, tag_field="type", tag="text", forbid_unknown_fields=True):
    """A piece of a message's content."""

    text: str


class FunctionCall(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A function that the assistant calls; `arguments` is JSON in a string."""

    name: str
    arguments: str


class ToolCall(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One call of a tool."""

    id: str
    type: Literal["function"]
    function: FunctionCall


Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool", "function"]
Content: TypeAlias = str | Annotated[list[TextPart], Meta(min_length=1)] | None


class Message(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: Role
    content: Content = None
    name: str | None = None
    weight: Literal[0, 1] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None
    refusal: str | None = None

    @property
    def text(self) -> str:
        """The content as one string; empty when there is none."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    @property
    def trained(self) -> bool:
        """Whether this turn's tokens are learned."""
        return self.role == "assistant" and self.weight != 0


class ChatExample(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of a file for supervised training."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None


def check_messages(messages: list[Message], where: str = "messages") -> None:
    """Raise ValueError, which names the message, for what the types alone cannot refuse."""
    for position, message in enumerate(messages):
        if message.content is None and not (message.tool_calls or message.function_call or message.refusal):
            raise ValueError(f"{where}[{position}] has no content")
        if message.weight is not None and message.role != "assistant":
            raise ValueError(f"{where}[{position}].weight is for assistant messages only")
