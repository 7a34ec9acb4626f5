"""Reading a training file: JSON Lines in OpenAI's chat format, checked line by line without a tokenizer.

One example a line, UTF-8: {"messages": [{"role": …, "content": …, "weight": 0 or 1}, …], "tools": […]}. Every assistant
message is trained on unless its weight is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from shared.errors import InvalidTrainingData

MIN_EXAMPLES = 10
_MAX_LINE_BYTES = 64 << 20


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
    """One line of a training file."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None


_decode = msgspec.json.Decoder(ChatExample).decode


class Census(Struct, frozen=True, kw_only=True):
    """What a good file holds."""

    examples: int
    trained_messages: int


def read_examples(path: Path) -> Iterator[tuple[int, ChatExample]]:
    """Yield (line number from 1, example) of a file that validate() has passed; blank lines are skipped."""
    for number, line in _lines(path):
        yield number, _decode(_text(line))


def validate(path: Path, *, role: Literal["training", "validation"] = "training", file_id: str = "") -> Census:
    """Check every line and return what the file holds.

    Raises InvalidTrainingData; its message names the first bad line, what is wrong with it, and how many lines are bad.
    A training file needs at least 10 examples, a validation file one. Memory: one line.
    """
    examples = trained = bad = 0
    first = ""
    for number, line in _lines(path):
        try:
            trained += _check(line)
            examples += 1
        except (ValueError, RecursionError) as error:  # msgspec's and our own complaints
            bad += 1
            first = first or f"line {number}: {error}"
    problem = _verdict(examples, bad, first, MIN_EXAMPLES if role == "training" else 1, role)
    if problem:
        name = f" {file_id}" if file_id else ""
        raise InvalidTrainingData(
            f"The job failed due to an invalid {role} file{name}. {problem}",
            code=f"invalid_{role}_file",
            param=f"{role}_file",
        )
    return Census(examples=examples, trained_messages=trained)


def _verdict(examples: int, bad: int, first: str, least: int, role: str) -> str:
    if bad:
        return f"{first}. {bad} of {examples + bad} lines are invalid."
    if examples == 0:
        return "The file is empty."
    if examples < least:
        return f"{role.capitalize()} file has {examples} example(s), but must have at least {least} examples."
    return ""


def _check(line: bytes) -> int:
    """Return how many messages of a line are trained on; raises ValueError that says what is wrong with it."""
    example = _decode(_text(line))
    for position, message in enumerate(example.messages):
        if message.content is None and not (message.tool_calls or message.function_call or message.refusal):
            raise ValueError(f"messages[{position}] has no content")
        if message.weight is not None and message.role != "assistant":
            raise ValueError(f"messages[{position}].weight is for assistant messages only")
    trained = sum(message.trained for message in example.messages)
    if not any(message.role == "assistant" for message in example.messages):
        raise ValueError("no assistant message, so there is nothing to learn from it")
    if not trained:
        raise ValueError("every assistant message has weight 0, so there is nothing to learn from it")
    return trained


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank; one that is too long comes in pieces, so that it never fills the memory."""
    with path.open("rb") as handle:
        for number, line in enumerate(iter(lambda: handle.readline(_MAX_LINE_BYTES + 1), b""), 1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if text.strip():
                yield number, text


def _text(line: bytes) -> bytes:
    if len(line) > _MAX_LINE_BYTES:
        raise ValueError(f"longer than {_MAX_LINE_BYTES} bytes")
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    return line
