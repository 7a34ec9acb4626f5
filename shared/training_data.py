"""Reading the files of a job, checked line by line without a tokenizer.

One example a line, UTF-8, and one format a file; the first line decides which. For supervised training

    chat         {"messages": [{"role": …, "content": …, "weight": 0 or 1}, …], "tools": […]}: every assistant message
                 is trained on unless its weight is 0
    completion   {"prompt": "…", "completion": "…"}: the completion is trained on
    text         {"text": "…"}: all of it is trained on

for DPO, ORPO and reward models see preference_data.py, for KTO labelled_data.py, for reinforcement
reinforcement_data.py.
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
from shared.labelled_data import LabelledExample, check_labelled
from shared.plain_data import CompletionExample, TextExample, check_completion, check_plain_text
from shared.preference_data import PreferenceExample, check_preference
from shared.quick_check import quick_check
from shared.reinforcement_data import PromptExample, check_prompt
from shared.schemas.methods import MethodName
from shared.token_cache import Format

__all__ = ["MIN_EXAMPLES", "Census", "ChatExample", "Message", "read_examples", "validate"]

Method: TypeAlias = MethodName
FileRole: TypeAlias = Literal["training", "validation"]

MIN_EXAMPLES = 10
MAX_PROMPTS: dict[FileRole, int] = {"training": 50_000, "validation": 1000}
"""Rows of a reinforcement job's files, as at OpenAI."""

_decode = msgspec.json.Decoder(ChatExample).decode
_decode_preference = msgspec.json.Decoder(PreferenceExample).decode
_decode_labelled = msgspec.json.Decoder(LabelledExample).decode
_decode_prompt = msgspec.json.Decoder(PromptExample).decode
_decode_completion = msgspec.json.Decoder(CompletionExample).decode
_decode_text = msgspec.json.Decoder(TextExample).decode
_decode_keys = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

_KEYS: dict[Format, tuple[str, ...]] = {
    "chat": ("messages",),
    "completion": ("prompt", "completion"),
    "text": ("text",),
    "preference": ("input", "preferred_output", "non_preferred_output"),
    "labelled": ("label",),
    "prompt": ("messages",),
}
"""What tells a format from the others; a labelled line may have the keys of others too."""
_FORMATS: dict[Method, tuple[Format, ...]] = {
    "supervised": ("chat", "completion", "text"),
    "dpo": ("preference",),
    "reinforcement": ("prompt",),
    "kto": ("labelled",),
    "orpo": ("preference",),
    "reward": ("preference",),
}
"""The first is assumed of a line that is of none."""
_OWNERS: dict[Format, str] = {
    "labelled": "a kto job",
    "preference": "a dpo, orpo or reward job",
    "chat": "a supervised job",
    "completion": "a supervised job",
    "text": "a supervised job",
    "prompt": "a reinforcement job",
}


class Census(Struct, frozen=True, kw_only=True):
    """What a good file holds. Of preferences both answers of each pair count as trained messages."""

    examples: int
    trained_messages: int
    format: Format = "chat"


def read_examples(path: Path) -> Iterator[tuple[int, ChatExample]]:
    """Yield (line number from 1, example) of a file that validate() has passed; blank lines are skipped."""
    for number, line in read_lines(path):
        yield number, _decode(check_text(line))


def min_validation_examples(method: Method) -> int:
    """Return how many rows a validation file needs: KTO compares each row with another one."""
    return 2 if method == "kto" else 1


def validate(
    path: Path,
    *,
    role: FileRole = "training",
    file_id: str = "",
    method: Method = "supervised",
    expected: Format | None = None,
) -> Census:
    """Check every line and return what the file holds; its format must be `expected`, if that is given.

    Raises InvalidTrainingData; its message names the first bad line, what is wrong with it, and how many lines are bad.
    A training file needs at least 10 examples, and for KTO both labels; a validation file one, for KTO two. Memory: a
    block, and the longest line.
    """
    tally = _Tally(method, expected)
    for number, block in read_blocks(path):
        tally.add(number, block)
    problem = tally.verdict(MIN_EXAMPLES if role == "training" else min_validation_examples(method), role)
    if problem:
        name = f" {file_id}" if file_id else ""
        raise InvalidTrainingData(
            f"The job failed due to an invalid {role} file{name}. {problem}",
            code=f"invalid_{role}_file",
            param=f"{role}_file",
        )
    return Census(examples=tally.examples, trained_messages=tally.trained, format=tally.format or "chat")


def format_of(path: Path, method: Method) -> Format:
    """Look at the first line of a file."""
    first = next((line for _, line in read_lines(path)), b"")
    return _format_of(first, method) or _FORMATS[method][0]


class _Tally:
    """Counts good and bad lines."""

    def __init__(self, method: Method, expected: Format | None) -> None:
        self._method = method
        self._expected = expected
        self.format = expected
        self.examples = self.trained = self.bad = 0
        self.first = ""
        self._labels: set[bool] = set()

    def add(self, number: int, block: bytes) -> None:
        """Count a block of lines, of which the first has `number`: each quickly if it is an ordinary one."""
        if self.format is None:
            first = next((line for line in block.split(b"\n") if line and not line.isspace()), None)
            if first is None:
                return
            self.format = _format_of(first, self._method) or _FORMATS[self._method][0]
        quick = self._labelled if self.format == "labelled" else _QUICK[self.format]
        for position, line in enumerate(block.split(b"\n"), number):
            try:
                trained = quick(line)
            except (ValueError, RecursionError):
                trained = 0
            if trained:
                self.examples += 1
                self.trained += trained
            elif line and not line.isspace():
                self._look_closely(self.format, position, line)

    def _labelled(self, line: bytes) -> int:
        example = _decode_labelled(check_text(line))
        trained = check_labelled(example)
        self._labels.add(example.label)
        return trained

    def _look_closely(self, format_: Format, number: int, line: bytes) -> None:
        try:
            self.trained += _CAREFUL[format_](line)
            self.examples += 1
        except (ValueError, RecursionError) as error:  # msgspec's and our own complaints
            self.bad += 1
            self.first = self.first or f"line {number}: {self._wrong_format(format_, line) or error}"

    def _wrong_format(self, format_: Format, line: bytes) -> str:
        """Say so when a line is of another format; empty for any other complaint."""
        found = _keys_of(line)
        if not found.isdisjoint(_KEYS[format_]):
            return ""
        for candidate in (*_FORMATS[self._method], *_OWNERS):
            if not found.isdisjoint(_KEYS[candidate]):
                has = ", ".join(f"'{name}'" for name in _KEYS[candidate] if name in found)
                needs = ", ".join(f"'{name}'" for name in _KEYS[format_])
                if candidate not in _FORMATS[self._method]:
                    return (
                        f"{_an(self._method)} job needs lines with {needs}; "
                        f"this one has {has}, which is the format of {_OWNERS[candidate]}"
                    )
                what = "the training file" if self._expected else "the file's first line"
                return f"{what} has {needs}, and this line has {has}; all lines of a job have one format"
        return ""

    def verdict(self, least: int, role: FileRole) -> str:
        """Say what is wrong with the file; empty if nothing is."""
        if self.bad:
            return f"{self.first}. {self.bad} of {self.examples + self.bad} lines are invalid."
        if self.examples == 0:
            return "The file is empty."
        if self.examples < least:
            return f"{role.capitalize()} file has {self.examples} example(s), but must have at least {least} examples."
        if self._method == "reinforcement" and self.examples > MAX_PROMPTS[role]:
            return f"{role.capitalize()} file has {self.examples} examples, but must have at most {MAX_PROMPTS[role]}."
        if len(self._labels) == 1 and role == "training":
            return one_label(next(iter(self._labels)))
        return ""


def one_label(label: bool) -> str:
    """Say that all rows have this label."""
    return f"Every line has the label {str(label).lower()}, but KTO learns from the difference: both labels are needed."


def _an(method: Method) -> str:
    return f"an {method}" if method == "orpo" else f"a {method}"


def _check_chat(line: bytes) -> int:
    return check_example(_decode(check_text(line)))


def _check_preference(line: bytes) -> int:
    return check_preference(_decode_preference(check_text(line)))


def _check_prompt(line: bytes) -> int:
    msgspec.json.decode(check_text(line))  # all of it: graders are given every key
    return check_prompt(_decode_prompt(line))


def _check_labelled(line: bytes) -> int:
    return check_labelled(_decode_labelled(check_text(line)))


def _check_completion(line: bytes) -> int:
    return check_completion(_decode_completion(check_text(line)))


def _check_plain_text(line: bytes) -> int:
    return check_plain_text(_decode_text(check_text(line)))


_CAREFUL: dict[Format, Callable[[bytes], int]] = {
    "chat": _check_chat,
    "completion": _check_completion,
    "text": _check_plain_text,
    "preference": _check_preference,
    "labelled": _check_labelled,
    "prompt": _check_prompt,
}
"""Return how many messages of a line are trained on; raise ValueError with what is wrong."""
_QUICK: dict[Format, Callable[[bytes], int]] = {**_CAREFUL, "chat": quick_check}


def _keys_of(line: bytes) -> frozenset[str]:
    """Return the keys of the object on a line; none when it is no object."""
    try:
        return frozenset(_decode_keys(check_text(line)))
    except (ValueError, RecursionError):
        return frozenset()


def _format_of(line: bytes, method: Method) -> Format | None:
    keys = _keys_of(line)
    return next((format_ for format_ in _FORMATS[method] if not keys.isdisjoint(_KEYS[format_])), None)
