"""Rows for reinforcement: prompts to be answered, and the answers that were tried."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.trainer.data.chat import Example, OfOneExample


@dataclass(frozen=True, slots=True)
class Prompt:
    """A line's prompt, with room for an answer: sizes are those of the longest row that it may become."""

    example: Example
    """The prompt's tokens; that the last of them is marked as a target means nothing."""
    room: int
    """Tokens that an answer may have."""

    @property
    def line(self) -> int:
        """Number of the line in its file, from 1."""
        return self.example.line

    @property
    def width(self) -> int:
        return self.example.n_tokens + self.room

    @property
    def n_tokens(self) -> int:
        return self.width

    @property
    def n_supervised(self) -> int:
        return self.room

    @property
    def sides(self) -> int:
        return 1

    @property
    def prompt(self) -> list[int]:
        return list(map(int, self.example.tokens))

    @property
    def prompt_length(self) -> int:
        return self.example.n_tokens


@dataclass(frozen=True, slots=True)
class Completion(OfOneExample):
    """A prompt with an answer that was sampled, and what is known of the answer's N tokens."""

    example: Example
    """Its targets are the answer's tokens."""
    advantage: float
    """How much better than its group's mean; above 0 the answer is to become more likely."""
    behaviour_N: NDArray[np.float32]
    """Log probabilities in nats by the model that sampled it, as the server told them."""
    reference_N: NDArray[np.float32] | None = None
    """The same by the model that training starts from; None until it is known."""

    def referring(self, reference_N: NDArray[np.float32]) -> Completion:
        """Return the row with its reference."""
        return dataclasses.replace(self, reference_N=reference_N)


def completion(
    line: int, prompt: Sequence[int], answer: Sequence[int], *, advantage: float, behaviour: Sequence[float]
) -> Completion:
    """Put an answer, of at least one token, behind its prompt, of at least one token."""
    tokens = np.array([*prompt, *answer], np.int32)
    supervised = (np.arange(len(tokens)) >= len(prompt)).astype(np.uint8)
    return Completion(Example(line, tokens, supervised), advantage, np.array(behaviour, np.float32))
