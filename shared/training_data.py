"""Reading a training file: JSON Lines in OpenAI's chat format, checked line by line without a tokenizer.

One example a line, UTF-8: {"messages": [{"role": …, "content": …, "weight": 0 or 1}, …], "tools": […]}. Every assistant
message is trained on unless its weight is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from shared.chat_data import ChatExample, Message, check_messages
from shared.errors import InvalidTrainingData
from shared.json_lines import check_text, read_lines

__all__ = ["MIN_EXAMPLES", "Census", "ChatExample", "Message", "read_examples", "validate"]

MIN_EXAMPLES = 10


_decode = msgspec.json.Decoder(ChatExample).decode


class Census(Struct, frozen=True, kw_only=True):
    """What a good file holds."""

    examples: int
    trained_messages: int


def read_examples(path: Path) -> Iterator[tuple[int, ChatExample]]:
    """Yield (line number from 1, example) of a file that validate() has passed; blank lines are skipped."""
    for number, line in read_lines(path):
        yield number, _decode(check_text(line))


def validate(path: Path, *, role: Literal["training", "validation"] = "training", file_id: str = "") -> Census:
    """Check every line and return what the file holds.

    Raises InvalidTrainingData; its message names the first bad line, what is wrong with it, and how many lines are bad.
    A training file needs at least 10 examples, a validation file one. Memory: one line.
    """
    examples = trained = bad = 0
    first = ""
    for number, line in read_lines(path):
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
    example = _decode(check_text(line))
    check_messages(example.messages)
    trained = sum(message.trained for message in example.messages)
    if not any(message.role == "assistant" for message in example.messages):
        raise ValueError("no assistant message, so there is nothing to learn from it")
    if not trained:
        raise ValueError("every assistant message has weight 0, so there is nothing to learn from it")
    return trained
