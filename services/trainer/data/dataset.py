"""The tokenised rows of a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

from services.trainer.data.batches import R

PROBE_TOKENS = 512
"""Prompts longer than this are not offered for the parity check: it has to be quick."""


@dataclass(frozen=True, slots=True)
class Dataset(Generic[R]):
    """Tokenised rows; `valid` is empty when there is no validation file."""

    train: Sequence[R]
    valid: Sequence[R]

    def probes(self, count: int) -> list[list[int]]:
        """Pick the shortest prompts, of held-out rows if there are any, as token ids."""
        prompts = sorted({tuple(row.prompt) for row in self.valid or self.train}, key=lambda p: (len(p), p))
        return [list(prompt) for prompt in prompts[:count] if len(prompt) <= PROBE_TOKENS]
