"""The piece of a training file that needs the most memory, found from its tokens. No torch."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from services.trainer.data.cutting import (
    FLAT_TOKENS,
    MICRO_BATCH_TOKENS,
    capped,
    common_beginning,
    flat_pieces,
    in_dictionary_order,
    micro_batches,
    packs,
)
from services.trainer.data.table import Fitting, TokenTable
from services.trainer.data.tokenizing_protocol import Request
from services.trainer.memory.estimate import Piece
from shared.auto_hyperparameters import resolve
from shared.overlong import DROPPED

_BATCHES = 500
"""So many batches are looked at."""
_CANDIDATES = 8
"""Of so many pieces what their rows begin alike with is looked at."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How rows are put together."""

    batch_size: int
    most_rows: int | None = None
    packing: bool = False
    shares: bool = True

    @classmethod
    def of(cls, request: Request, n_rows: int) -> Reading:
        """See what a job asks for, with `auto` filled in."""
        options = request.options
        batch_size = resolve(request.requested, n_rows, request.method).batch_size
        assert batch_size != "auto"
        pieces = min(options.gradient_accumulation_steps or 1, batch_size)
        return cls(
            batch_size=batch_size,
            most_rows=None if pieces == 1 else math.ceil(batch_size / pieces),
            packing=bool(options.packing),
            shares=not options.dropout,
        )


@dataclass(frozen=True, slots=True)
class _Row:
    index: int
    width: int
    n_tokens: int
    sides: int


def heaviest_piece(table: TokenTable, fitting: Fitting, reading: Reading) -> Piece:
    """Find it among batches of rows of similar length, as an epoch has them; the rows' order in a file is not known.

    Raises ValueError for a table without rows.
    """
    batches = _batches(table, fitting, reading.batch_size)
    flat = [piece for batch in batches for piece in capped(flat_pieces(batch), reading.most_rows)]
    largest = heapq.nlargest(_CANDIDATES, flat, key=lambda piece: sum(row.n_tokens for row in piece))
    tokens = max(_distinct(table, fitting, piece, shares=reading.shares) for piece in largest)
    padded = max(_padded(piece, reading) for batch in batches for piece in _plain(batch, reading))
    return Piece(tokens=tokens, padded_tokens=padded)


def heaviest_answers(table: TokenTable, fitting: Fitting, room: int) -> Piece:
    """Find it among prompts with answers of `room` tokens each: a full piece, or the longest row if that has more."""
    widths = table.used_S[[row for row in range(len(table.lines_R)) if fitting.cuts.get(row, 0) != DROPPED]]
    longest = int(widths.max()) + room
    return Piece(tokens=max(FLAT_TOKENS, longest), padded_tokens=max(MICRO_BATCH_TOKENS, longest))


def _batches(table: TokenTable, fitting: Fitting, size: int) -> list[list[_Row]]:
    """Cut the rows by length into batches, the longest first; of a long file evenly spread ones."""
    widths_RS = table.used_S.reshape(-1, table.sides).astype(np.int64, copy=True)
    for row, cut in fitting.cuts.items():
        widths_RS[row] = widths_RS[row] - cut if cut != DROPPED else 0
    longest_R, whole_R = widths_RS.max(axis=1), widths_RS.sum(axis=1)
    order = np.argsort(-longest_R, kind="stable")[: np.count_nonzero(longest_R)]
    apart = math.ceil(len(order) / size / _BATCHES)
    return [
        [_Row(row, int(longest_R[row]), int(whole_R[row]), table.sides) for row in order[start : start + size].tolist()]
        for start in range(0, len(order), size * apart)
    ]


def _plain(batch: Sequence[_Row], reading: Reading) -> list[list[_Row]]:
    return capped(packs(batch) if reading.packing else micro_batches(batch), reading.most_rows)


def _padded(piece: Sequence[_Row], reading: Reading) -> int:
    if reading.packing:
        return sum(row.n_tokens for row in piece)
    return max(row.width for row in piece) * sum(row.sides for row in piece)


def _distinct(table: TokenTable, fitting: Fitting, piece: Sequence[_Row], *, shares: bool) -> int:
    """Count a piece's tokens as segments.lay_out lays them: the nodes of the tree that its rows form."""
    if not shares:
        return sum(row.n_tokens for row in piece)
    sides = [
        np.asarray(table.side(row.index * row.sides + side, 0, fitting.cuts.get(row.index, 0)).tokens)
        for row in piece
        for side in range(row.sides)
    ]
    neighbours = pairwise(in_dictionary_order(sides))
    return sum(map(len, sides)) - sum(common_beginning(sides[one], sides[other]) for one, other in neighbours)
