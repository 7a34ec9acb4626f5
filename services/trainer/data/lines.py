"""Lines of a training file -> tokens and masks, whatever their format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from services.trainer.data.chat import NOTHING_TO_LEARN, ChatMarker
from services.trainer.data.coder import Coder
from services.trainer.data.masks import Marked, mark_completion, mark_text
from services.trainer.data.pairs import sides_of
from shared.chat_data import ChatExample
from shared.json_lines import check_text, split_lines
from shared.labelled_data import LabelledExample
from shared.plain_data import CompletionExample, TextExample
from shared.preference_data import PreferenceExample
from shared.reinforcement_data import PromptExample
from shared.token_cache import Format


@dataclass(frozen=True, slots=True)
class MarkedRow:
    """A line's sides, one or two, and whether they are to become more likely: only KTO's rows say no."""

    sides: tuple[Marked, ...]
    label: bool = True


LineMarker = Callable[[bytes], MarkedRow]
"""Raises ValueError with what is wrong with the line."""

N_SIDES: dict[Format, int] = {"chat": 1, "completion": 1, "text": 1, "preference": 2, "labelled": 1, "prompt": 1}

_chat = msgspec.json.Decoder(ChatExample).decode
_labelled = msgspec.json.Decoder(LabelledExample).decode
_prompt = msgspec.json.Decoder(PromptExample).decode
_preference = msgspec.json.Decoder(PreferenceExample).decode
_completion = msgspec.json.Decoder(CompletionExample).decode
_text = msgspec.json.Decoder(TextExample).decode


@dataclass(frozen=True, slots=True)
class Block:
    """The rows of some lines, in order; lines are counted from the block's first, which is 0."""

    ids: bytes
    mask: bytes
    lengths: list[int]
    """Tokens of each side."""
    used: list[int]
    lines: list[int]
    """Of each row."""
    problems: list[tuple[int, str]]
    """What is wrong with which line; such a line has no row."""
    n_lines: int
    labels: bytes
    """Of each row, 1 or 0."""


def line_marker(format_: Format, tokenizer: Any) -> LineMarker:
    """Make the function for a format; conversations need a tokenizer with a chat template."""
    if format_ == "completion":
        coder = Coder(tokenizer)
        return lambda line: MarkedRow((_complete(_completion(line), coder),))
    if format_ == "text":
        coder = Coder(tokenizer)
        return lambda line: MarkedRow((mark_text(_text(line).text, coder),))
    marker = ChatMarker(tokenizer)
    if format_ == "preference":
        return lambda line: MarkedRow(tuple(map(marker, sides_of(_preference(line)))))
    if format_ == "labelled":
        return lambda line: _mark_labelled(_labelled(line), marker)
    if format_ == "prompt":
        return lambda line: MarkedRow((marker.prompt(_prompt(line)),))
    return lambda line: MarkedRow((marker(_chat(line)),))


def _mark_labelled(row: LabelledExample, marker: ChatMarker) -> MarkedRow:
    return MarkedRow((marker(row.conversation()),), row.label)


def _complete(row: CompletionExample, coder: Coder) -> Marked:
    return mark_completion(row.prompt, row.completion, coder)


def tokenize_block(block: bytes, marker: LineMarker) -> Block:
    """Tokenise whole lines; blank ones are no rows."""
    sides: list[Marked] = []
    lines: list[int] = []
    labels = bytearray()
    problems: list[tuple[int, str]] = []
    for number, line in split_lines(0, block):
        try:
            row = marker(check_text(line))
            if not all(side.used for side in row.sides):
                raise ValueError(NOTHING_TO_LEARN)
        except (ValueError, RecursionError) as error:
            problems.append((number, str(error)))
        else:
            sides += row.sides
            lines.append(number)
            labels.append(row.label)
    return Block(
        ids=b"".join([side.ids for side in sides]),
        mask=b"".join([side.mask for side in sides]),
        lengths=[len(side.mask) for side in sides],
        used=[side.used for side in sides],
        lines=lines,
        problems=problems,
        n_lines=block.count(b"\n") + (not block.endswith(b"\n")),
        labels=bytes(labels),
    )
