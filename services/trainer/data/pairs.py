"""Preference rows -> pairs of tokenised examples: one conversation, two answers, the preferred one first."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from services.trainer.data.chat import ChatTokenizer, Example, tokenize_rows
from shared.chat_data import ChatExample, Message
from shared.labelled_data import unlearnt
from shared.preference_data import PreferenceExample, PreferenceInput


@dataclass(frozen=True, slots=True)
class Pair:
    """Two examples that begin alike; their targets are the tokens of the last answer.

    The reference is the summed log probability, in nats, that the model from which training starts gives each answer;
    not a number until it is known.
    """

    chosen: Example
    rejected: Example
    reference_chosen: float = math.nan
    reference_rejected: float = math.nan

    @property
    def width(self) -> int:
        """Tokens of the longer side."""
        return max(self.chosen.width, self.rejected.width)

    @property
    def n_tokens(self) -> int:
        """Tokens of both sides."""
        return self.chosen.n_tokens + self.rejected.n_tokens

    @property
    def n_supervised(self) -> int:
        """Tokens of both answers."""
        return self.chosen.n_supervised + self.rejected.n_supervised

    @property
    def sides(self) -> int:
        return 2

    @property
    def compared(self) -> tuple[Example, Example]:
        """What the reference is asked about, in the order of its numbers."""
        return self.chosen, self.rejected

    def referring(self, chosen: float, rejected: float) -> Pair:
        """Return the pair with its references."""
        return dataclasses.replace(self, reference_chosen=chosen, reference_rejected=rejected)

    @property
    def prompt(self) -> list[int]:
        """The tokens before the preferred answer."""
        return self.chosen.prompt

    @property
    def prompt_length(self) -> int:
        return self.chosen.prompt_length


def tokenize_pairs(
    rows: Sequence[tuple[int, PreferenceExample]], tokenizer: ChatTokenizer, *, max_length: int, param: str
) -> list[Pair]:
    """Turn (line number, row) pairs into pairs of examples, in order.

    Raises InvalidTrainingData as tokenize_rows does; `max_length` tokens are for each side.
    """
    if not rows:
        return []
    sides = zip(*(sides_of(row) for _, row in rows), strict=True)
    lines = [line for line, _ in rows]
    chosen, rejected = (
        tokenize_rows(zip(lines, side, strict=True), tokenizer, max_length=max_length, param=param) for side in sides
    )
    return [Pair(*pair) for pair in zip(chosen, rejected, strict=True)]


def sides_of(row: PreferenceExample) -> tuple[ChatExample, ChatExample]:
    """Return both conversations of a pair, each with one learnt answer, the preferred one first."""
    return _answered(row.input, row.preferred_output), _answered(row.input, row.non_preferred_output)


def _answered(asked: PreferenceInput, output: Sequence[Message]) -> ChatExample:
    """Put an answer behind its conversation; the answer's last message alone is compared."""
    context = [unlearnt(message) for message in [*asked.messages, *output[:-1]]]
    answer = replace(output[-1], weight=None)
    return ChatExample(messages=[*context, answer], tools=asked.tools, parallel_tool_calls=asked.parallel_tool_calls)
