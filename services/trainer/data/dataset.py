"""The tokenised rows of a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

from services.trainer.data.cutting import R

PROBE_TOKENS = 512
"""Of a longer prompt the parity check gets the beginning: it has to be quick, and any tokens will do for it."""


@dataclass(frozen=True, slots=True)
class Dataset(Generic[R]):
    """Tokenised rows; `valid` is empty when there is no validation file."""

    train: Sequence[R]
    valid: Sequence[R]

    def probes(self, count: int) -> list[list[int]]:
        """Pick the shortest prompts, of held-out rows if there are any, as token ids."""
        found: dict[tuple[int, ...], None] = {}
        for row in sorted(self.valid or self.train, key=lambda row: row.prompt_length):
            found[tuple(row.prompt[:PROBE_TOKENS])] = None
            if len(found) == count:
                break
        return [list(prompt) for prompt in found]
