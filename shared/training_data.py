"""Reading the files of a job, checked line by line without a tokenizer.

One example a line, UTF-8. For supervised training {"messages": [{"role": …, "content": …, "weight": 0 or 1}, …],
"tools": […]}, where every assistant message is trained on unless its weight is 0; for DPO see preference_data.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

from shared.chat_data import ChatExample, Message, check_example
from shared.errors import InvalidTrainingData
from shared.json_lines import check_text, read_blocks, read_lines
from shared.preference_data import PreferenceExample, check_preference
from shared.quick_check import quick_check

__all__ = ["MIN_EXAMPLES", "Census", "ChatExample", "Message", "read_examples", "validate"]

MIN_EXAMPLES = 10

Method: TypeAlias = Literal["supervised", "dpo"]
FileRole: TypeAlias = Literal["training", "validation"]

_decode = msgspec.json.Decoder(ChatExample).decode
_decode_preference = msgspec.json.Decoder(PreferenceExample).decode
_decode_keys = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

_FORMATS: dict[Method, tuple[str, ...]] = {
    "supervised": ("messages",),
    "dpo": ("input", "preferred_output", "non_preferred_output"),
}


class Census(Struct, frozen=True, kw_only=True):
    """What a good file holds. With DPO both answers of each pair count as trained messages."""

    examples: int
    trained_messages: int


def read_examples(path: Path) -> Iterator[tuple[int, ChatExample]]:
    """Yield (line number from 1, example) of a file that validate() has passed; blank lines are skipped."""
    for number, line in read_lines(path):
        yield number, _decode(check_text(line))


def validate(path: Path, *, role: FileRole = "training", file_id: str = "", method: Method = "supervised") -> Census:
    """Check every line and return what the file holds.

    Raises InvalidTrainingData; its message names the first bad line, what is wrong with it, and how many lines are bad.
    A training file needs at least 10 examples, a validation file one. Memory: a block, and the longest line.
    """
    tally = _Tally(method)
    for number, block in read_blocks(path):
        tally.add(number, block)
    problem = tally.verdict(MIN_EXAMPLES if role == "training" else 1, role)
    if problem:
        name = f" {file_id}" if file_id else ""
        raise InvalidTrainingData(
            f"The job failed due to an invalid {role} file{name}. {problem}",
            code=f"invalid_{role}_file",
            param=f"{role}_file",
        )
    return Census(examples=tally.examples, trained_messages=tally.trained)


class _Tally:
    """Counts good and bad lines."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self.examples = self.trained = self.bad = 0
        self.first = ""

    def add(self, number: int, block: bytes) -> None:
        """Count a block of lines, of which the first has `number`: each quickly if it is an ordinary one."""
        quick = _QUICK[self._method]
        for position, line in enumerate(block.split(b"\n"), number):
            try:
                trained = quick(line)
            except (ValueError, RecursionError):
                trained = 0
            if trained:
                self.examples += 1
                self.trained += trained
            elif line and not line.isspace():
                self._look_closely(position, line)

    def _look_closely(self, number: int, line: bytes) -> None:
        try:
            self.trained += _CAREFUL[self._method](line)
            self.examples += 1
        except (ValueError, RecursionError) as error:  # msgspec's and our own complaints
            self.bad += 1
            self.first = self.first or f"line {number}: {_wrong_format(line, self._method) or error}"

    def verdict(self, least: int, role: FileRole) -> str:
        """Say what is wrong with the file; empty if nothing is."""
        if self.bad:
            return f"{self.first}. {self.bad} of {self.examples + self.bad} lines are invalid."
        if self.examples == 0:
            return "The file is empty."
        if self.examples < least:
            return f"{role.capitalize()} file has {self.examples} example(s), but must have at least {least} examples."
        return ""


def _check_chat(line: bytes) -> int:
    return check_example(_decode(check_text(line)))


def _check_preference(line: bytes) -> int:
    return check_preference(_decode_preference(check_text(line)))


_CAREFUL: dict[Method, Callable[[bytes], int]] = {"supervised": _check_chat, "dpo": _check_preference}
"""Return how many messages of a line are trained on; raise ValueError with what is wrong."""
_QUICK: dict[Method, Callable[[bytes], int]] = {"supervised": quick_check, "dpo": _check_preference}


def _wrong_format(line: bytes, method: Method) -> str:
    """Say so when a line is of the other method's format; empty for any other."""
    try:
        found = _decode_keys(check_text(line)).keys()
    except (ValueError, RecursionError):
        return ""
    other: Method = "dpo" if method == "supervised" else "supervised"
    if found.isdisjoint(_FORMATS[other]) or not found.isdisjoint(_FORMATS[method]):
        return ""
    needs = ", ".join(f"'{name}'" for name in _FORMATS[method])
    has = ", ".join(f"'{name}'" for name in _FORMATS[other] if name in found)
    return f"a {method} job needs lines with {needs}; this one has {has}, which is the format of a {other} job"
