"""Tokenised rows in flat arrays, which may lie in memory or in mapped files; rows are views of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from services.trainer.data.chat import Example, refuse
from services.trainer.data.labelled import Labelled, with_mismatched
from services.trainer.data.lines import Block
from services.trainer.data.pairs import Pair
from services.trainer.data.prompts import Prompt
from shared.overlong import DROPPED, REFUSED, Overlong, first_kept, tokens_to_cut

FIRST_LINES = 10
"""So many lines are named where rows were dropped or cut."""


@dataclass(frozen=True, slots=True)
class TokenTable:
    """S sides in R rows; T tokens in all. See shared.token_cache for what the arrays hold."""

    ids_T: NDArray[np.int32]
    mask_T: NDArray[np.uint8]
    ends_S: NDArray[np.int64]
    used_S: NDArray[np.int64]
    lines_R: NDArray[np.int64]
    labels_R: NDArray[np.uint8]
    bos_id: int | None = None

    @property
    def sides(self) -> int:
        return len(self.ends_S) // max(1, len(self.lines_R))

    def side(self, index: int, line: int, cut: int = 0) -> Example:
        """Return one side without the tokens behind its last target, and without `cut` tokens of its prompt."""
        start = int(self.ends_S[index - 1]) if index else 0
        end = start + int(self.used_S[index])
        ids, mask = self.ids_T[start:end], self.mask_T[start:end]
        if cut:
            kept = first_kept(int(ids[0]), self.bos_id)
            ids = np.concatenate([ids[:kept], ids[kept + cut :]])
            mask = np.concatenate([mask[:kept], mask[kept + cut :]])
        return Example(line, ids, mask)


@dataclass(slots=True)
class Builder:
    """Lays blocks one after the other: tokens and masks into two files, the few numbers of each row in memory."""

    ids: BinaryIO
    mask: BinaryIO
    lengths: list[int] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    labels: bytearray = field(default_factory=bytearray)
    problems: list[tuple[int, str]] = field(default_factory=list)
    n_problems: int = 0
    _next_line: int = 1

    def add(self, block: Block) -> None:
        """Add the block that follows in the file; of what is wrong the first is kept, and the number."""
        self.ids.write(block.ids)
        self.mask.write(block.mask)
        self.lengths += block.lengths
        self.used += block.used
        self.lines += [self._next_line + line for line in block.lines]
        self.labels += block.labels
        self.n_problems += len(block.problems)
        self.problems = self.problems or [(self._next_line + line, what) for line, what in block.problems]
        self._next_line += block.n_lines

    def arrays(self, param: str) -> dict[str, NDArray[Any]]:
        """Return `ends`, `used`, `lines`, `labels`. Raises InvalidTrainingData if something was wrong with a line."""
        refuse(self.problems[:1], param, self.n_problems)
        ends = np.cumsum(np.array(self.lengths, np.int64))
        return {
            "ends": ends,
            "used": np.array(self.used, np.int64),
            "lines": np.array(self.lines, np.int64),
            "labels": np.frombuffer(bytes(self.labels), np.uint8),
        }


@dataclass(frozen=True, slots=True)
class Fitting:
    """What the policy for over-long rows does to a table."""

    cuts: dict[int, int]
    """Row -> tokens to cut from the left of its prompt, or DROPPED."""
    dropped: list[int]
    cut: list[int]
    """Lines that were dropped and cut, in order."""


def fit(table: TokenTable, max_length: int, policy: Overlong, param: str) -> Fitting:
    """Apply the policy. Raises InvalidTrainingData with the first line of a row that it cannot take."""
    cuts: dict[int, int] = {}
    refused, dropped, cut = [], [], []
    widths = table.used_S.reshape(-1, table.sides).max(axis=1) if len(table.lines_R) else table.used_S
    for row in map(int, np.flatnonzero(widths > max_length)):
        line, width = int(table.lines_R[row]), int(widths[row])
        prompt = min(table.side(row * table.sides + side, line).prompt_length for side in range(table.sides))
        cuts[row] = tokens_to_cut(width, prompt, max_length, policy)
        if cuts[row] == REFUSED:
            what = f"{width} tokens, more than the {max_length} of this job"
            advice = (
                f"what is to be learnt has {width - prompt} of them, which are never cut"
                if policy == "truncate_prompt"
                else "shorten or split it, raise selftune.max_length or choose another selftune.overlong"
            )
            refused.append((line, f"{what}; {advice}"))
        elif cuts[row] == DROPPED:
            dropped.append(line)
        else:
            cut.append(line)
    refuse(refused, param)
    return Fitting(cuts, dropped, cut)


def examples(table: TokenTable, fitting: Fitting) -> list[Example]:
    """Return the rows of a table with one side, without those that were dropped."""
    lines = table.lines_R.tolist()
    cuts = fitting.cuts
    return [table.side(row, line, cuts.get(row, 0)) for row, line in enumerate(lines) if cuts.get(row, 0) != DROPPED]


def pairs(table: TokenTable, fitting: Fitting) -> list[Pair]:
    """Return the rows of a table with two sides; both lose the same tokens."""
    lines = table.lines_R.tolist()
    return [
        Pair(table.side(2 * row, line, cut), table.side(2 * row + 1, line, cut))
        for row, line in enumerate(lines)
        if (cut := fitting.cuts.get(row, 0)) != DROPPED
    ]


def labelled(table: TokenTable, fitting: Fitting, max_length: int) -> list[Labelled]:
    """Return the rows of a table with one side and their labels, each with an answer of another row's."""
    labels = [bool(label) for row, label in enumerate(table.labels_R) if fitting.cuts.get(row, 0) != DROPPED]
    return with_mismatched(examples(table, fitting), labels, max_length=max_length)


def prompts(table: TokenTable, fitting: Fitting, room: int) -> list[Prompt]:
    """Return the rows of a table of prompts, each with room for an answer of `room` tokens."""
    return [Prompt(example, room) for example in examples(table, fitting)]


def count_desirable(table: TokenTable, fitting: Fitting) -> int:
    """Count the rows with the label true, without those that were dropped."""
    return sum(bool(label) for row, label in enumerate(table.labels_R) if fitting.cuts.get(row, 0) != DROPPED)
