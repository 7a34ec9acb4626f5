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
        prompts = sorted({tuple(row.prompt) for row in self.valid or self.train}, key=lambda p: (len(p), p))
        return [list(prompt[:PROBE_TOKENS]) for prompt in prompts[:count]]
