"""Rows -> one flat row without padding, in which whatever rows begin alike with stands once. Axes: T tokens, N targets.

The rows of a batch form a tree: a node is a run of tokens, and a row is the runs from the root to one node. A causal
model's hidden state depends on nothing but the tokens up to it, so one computation of a run serves every row through
it, targets inside it included, and its gradient comes from all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from services.trainer.data.chat import Example
from services.trainer.data.cutting import common_beginning, in_dictionary_order

SHORTEST_SHARED_RUN = 8
"""Sharing that saves fewer tokens than this costs more in attention over pieces than it saves."""


_TENSORS = ("inputs_T", "positions_T", "places_N", "targets_N")


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens: its places in the flat row, its first position, and the segments before it in its rows."""

    start: int
    end: int
    position: int
    before: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class FlatBatch:
    """Inputs without padding, and the places whose next token is learnt; places of one example follow each other.

    `places_N` indexes inputs_T, several times where rows share a place; targets_N is what follows there in the row.
    """

    inputs_T: Tensor
    positions_T: Tensor
    segments: tuple[Segment, ...]
    places_N: Tensor
    targets_N: Tensor
    n_tokens: int
    """Tokens of all rows, those that stand once for several counted for each, and the last one of each."""
    counts: tuple[int, ...]
    """How many of the N places each example has."""

    def to(self, device: torch.device) -> FlatBatch:
        moved = {name: getattr(self, name).to(device) for name in _TENSORS}
        return replace(self, **moved)


def lay_out(examples: Sequence[Example], *, share: bool = True) -> FlatBatch:
    """Lay rows out flat; with `share`, common beginnings once. The last token of a row is only a target."""
    rows = [np.asarray(example.tokens, dtype=np.int64) for example in examples]
    tree = _Tree([row[:-1] for row in rows])
    if share:
        tree.grow()
    else:
        tree.stand_alone()
    learnt = [np.flatnonzero(np.frombuffer(example.supervised, dtype=np.uint8)) for example in examples]
    places = [tree.places(index, positions - 1) for index, positions in enumerate(learnt)]
    targets = [row[positions] for row, positions in zip(rows, learnt, strict=True)]
    return FlatBatch(
        inputs_T=torch.from_numpy(np.concatenate(tree.pieces)),
        positions_T=torch.cat([torch.arange(s.position, s.position + s.length) for s in tree.segments]),
        segments=tuple(tree.segments),
        places_N=torch.from_numpy(np.concatenate(places)),
        targets_N=torch.from_numpy(np.concatenate(targets)),
        n_tokens=sum(len(row) for row in rows),
        counts=tuple(len(positions) for positions in learnt),
    )


class _Tree:
    """Segments as they are added, and for each row the segments it goes through."""

    def __init__(self, rows: Sequence[np.ndarray]) -> None:
        self.rows = rows
        self.segments: list[Segment] = []
        self.pieces: list[np.ndarray] = []
        self._paths: list[tuple[int, ...]] = [()] * len(rows)

    def stand_alone(self) -> None:
        """Make every row a segment of its own."""
        for index in range(len(self.rows)):
            self._add_rest(index, 0, ())

    def grow(self) -> None:
        """Make a tree of the rows' common beginnings."""
        order = in_dictionary_order(self.rows)
        # In dictionary order, what a range of rows has in common is the least that two neighbours have.
        shared = [0, *(common_beginning(self.rows[a], self.rows[b]) for a, b in pairwise(order))]
        todo: list[tuple[int, int, int, tuple[int, ...]]] = [(0, len(order), 0, ())]
        while todo:
            first, end, depth, path = todo.pop()
            if end - first == 1:
                self._add_rest(order[first], depth, path)
                continue
            common = min(shared[first + 1 : end])
            if (common - depth) * (end - first - 1) >= SHORTEST_SHARED_RUN:
                path = self._add(self.rows[order[first]][depth:common], depth, path)
                depth = common
            cuts = [first, *(at for at in range(first + 1, end) if shared[at] == common), end]
            todo += [(start, stop, depth, path) for start, stop in pairwise(cuts)]

    def places(self, row: int, positions: np.ndarray) -> np.ndarray:
        """Find where positions of a row stand in the flat row."""
        path = [self.segments[index] for index in self._paths[row]]
        at = np.searchsorted([segment.position for segment in path], positions, side="right") - 1
        return positions + np.array([segment.start - segment.position for segment in path], dtype=np.int64)[at]

    def _add_rest(self, row: int, depth: int, path: tuple[int, ...]) -> None:
        rest = self.rows[row][depth:]
        self._paths[row] = self._add(rest, depth, path) if len(rest) else path

    def _add(self, tokens: np.ndarray, position: int, path: tuple[int, ...]) -> tuple[int, ...]:
        start = self.segments[-1].end if self.segments else 0
        self.segments.append(Segment(start, start + len(tokens), position, path))
        self.pieces.append(tokens)
        return (*path, len(self.segments) - 1)
