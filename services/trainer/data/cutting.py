"""Rows -> pieces that go through the model at once. No torch: the worker estimates what a piece needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

MICRO_BATCH_TOKENS = 8192
"""Padded tokens that go through the model at once; a larger batch is accumulated."""
FLAT_TOKENS = 2048
"""The same where there is no padding."""
PACKED_TOKENS = 2048
"""Tokens that packed rows fill together; attention's cost grows with the square of it."""


class Cuttable(Protocol):
    """The size of a row: it has one side or several, such as the two answers of a pair."""

    @property
    def width(self) -> int:
        """Tokens of its longest side."""
        ...

    @property
    def n_tokens(self) -> int:
        """Tokens of all its sides."""
        ...

    @property
    def sides(self) -> int: ...


class Row(Cuttable, Protocol):
    """One line of a training file, tokenised."""

    @property
    def n_supervised(self) -> int:
        """Tokens of all its sides that are learnt."""
        ...

    @property
    def prompt(self) -> list[int]:
        """Tokens before the first target."""
        ...

    @property
    def prompt_length(self) -> int:
        """How many those are."""
        ...


M = TypeVar("M", bound=Cuttable)
R = TypeVar("R", bound=Row)


def flat_pieces(rows: Sequence[M], *, max_tokens: int = FLAT_TOKENS) -> list[list[M]]:
    """Cut rows into pieces of at most `max_tokens` tokens (one row may have more, alone), keeping their order."""
    pieces: list[list[M]] = []
    used = 0
    for row in rows:
        if not pieces or used + row.n_tokens > max_tokens:
            pieces.append([])
            used = 0
        pieces[-1].append(row)
        used += row.n_tokens
    return pieces


def micro_batches(rows: Sequence[M], *, max_tokens: int = MICRO_BATCH_TOKENS) -> list[list[M]]:
    """Split rows so that no piece has more than `max_tokens` padded tokens (one row may, alone); longest rows first."""
    pieces: list[list[M]] = []
    width = 0
    for row in sorted(rows, key=lambda row: -row.width):
        if not pieces or width * row.sides * (len(pieces[-1]) + 1) > max_tokens:
            pieces.append([])
            width = row.width
        pieces[-1].append(row)
    return pieces


def packs(rows: Sequence[M], *, max_tokens: int = PACKED_TOKENS) -> list[list[M]]:
    """Fill pieces of at most `max_tokens` tokens (one row may have more, alone): the longest first, where it fits."""
    pieces: list[tuple[list[M], int]] = []
    for row in sorted(rows, key=lambda row: -row.n_tokens):
        fits = next((i for i, (_, used) in enumerate(pieces) if used + row.n_tokens <= max_tokens), None)
        if fits is None:
            pieces.append(([row], row.n_tokens))
        else:
            piece, used = pieces[fits]
            pieces[fits] = ([*piece, row], used + row.n_tokens)
    return [piece for piece, _ in pieces]


def capped(pieces: Sequence[list[M]], most_rows: int | None) -> list[list[M]]:
    """Cut pieces further, so that none has more than `most_rows` rows; None leaves them as they are."""
    if most_rows is None:
        return list(pieces)
    return [piece[at : at + most_rows] for piece in pieces for at in range(0, len(piece), most_rows)]


def in_dictionary_order(rows: Sequence[NDArray[np.integer]]) -> list[int]:
    """Order rows of token ids, as indices, so that those that begin alike are neighbours."""
    return sorted(range(len(rows)), key=lambda index: rows[index].astype(">u4").tobytes())


def common_beginning(one: NDArray[np.integer], other: NDArray[np.integer]) -> int:
    """Count the tokens that two rows begin with alike."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length
