"""Labelled rows -> examples for KTO: each with its label, and with the answer of another row in place of its own.

How likely the model finds answers that do not belong to their prompt, compared with the model that training starts
from, estimates how far it has moved (arXiv:2402.01306, section 4.1). The paper and TRL shift the answers of a batch by
one. Batches here change from epoch to epoch, so the answers of the whole file are shifted: a row keeps its partner, and
what the starting model says of the two is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from services.trainer.data.chat import Example, OfOneExample


@dataclass(frozen=True, slots=True)
class Labelled(OfOneExample):
    """An example whose targets are the tokens of its answer, which is to become more likely, or less.

    The references are the summed log probabilities, in nats, that the model from which training starts gives the
    answer, and the other row's answer to this prompt; not a number until they are known. Sizes are the example's alone.
    """

    example: Example
    is_desirable: bool
    mismatched: Example
    """This row's prompt with another row's answer."""
    reference: float = math.nan
    reference_mismatched: float = math.nan

    @property
    def compared(self) -> tuple[Example, Example]:
        """What the reference is asked about, in the order of its numbers."""
        return self.example, self.mismatched

    def referring(self, reference: float, reference_mismatched: float) -> Labelled:
        """Return the row with its references."""
        return replace(self, reference=reference, reference_mismatched=reference_mismatched)


def with_mismatched(examples: Sequence[Example], labels: Sequence[bool], *, max_length: int) -> list[Labelled]:
    """Give each row the answer of the last row before it that has another prompt; the first ones look from the end.

    Where all prompts are alike it is the row before. A mismatched row loses the right of its answer beyond
    `max_length` tokens, and always keeps a token of it.
    """
    return [
        Labelled(example, label, _mismatched(example, examples[partner], max_length))
        for example, label, partner in zip(examples, labels, _partners(examples), strict=True)
    ]


def _partners(examples: Sequence[Example]) -> list[int]:
    """Find each row's partner. Of neighbours with one prompt, all have the partner of the first."""
    prompts = [example.tokens[: example.prompt_length].tobytes() for example in examples]
    count = len(examples)
    if len(set(prompts)) == 1:
        return [(row - 1) % count for row in range(count)]
    found: list[int] = []
    for row in range(count):
        before = (row - 1) % count
        if prompts[before] != prompts[row]:
            found.append(before)
        elif row:
            found.append(found[row - 1])
        else:
            found.append(next(at for at in range(count - 1, 0, -1) if prompts[at] != prompts[0]))
    return found


def _mismatched(example: Example, other: Example, max_length: int) -> Example:
    prompt, answer = example.prompt_length, slice(other.prompt_length, None)
    kept = max(max_length, prompt + 1)
    tokens = np.concatenate([example.tokens[:prompt], other.tokens[answer]])[:kept]
    supervised = np.concatenate([example.supervised[:prompt], other.supervised[answer]])[:kept]
    return Example(example.line, tokens, supervised)
