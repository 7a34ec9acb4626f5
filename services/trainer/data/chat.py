"""Chat rows -> tokens and the mask of what is learnt, exact for any chat template: template.py, masks.py, coder.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.trainer.data.coder import Coder
from services.trainer.data.masks import Marked, mark, mark_prompt
from services.trainer.data.template import ChatTemplate, ChatTokenizer
from shared.errors import InvalidTrainingData
from shared.reinforcement_data import PromptExample
from shared.training_data import ChatExample

__all__ = ["ChatTokenizer", "Example", "tokenize_rows"]

MAX_TRAINED = 1000
"""Messages of a row that are learnt; the conversation is written twice up to each of them."""

Row = tuple[int, ChatExample]


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A tokenised row, cut after its last supervised token since nothing behind it has an effect.

    `supervised[t]` is 1 when token t is a target; never at 0. Both are views of memory, or of a file, that rows share.
    """

    line: int
    tokens: NDArray[np.int32]
    supervised: NDArray[np.uint8]

    @property
    def prompt_length(self) -> int:
        """Number of tokens before the first target."""
        return int(np.argmax(np.frombuffer(self.supervised, np.uint8)))

    @property
    def prompt(self) -> list[int]:
        """The tokens before the first target."""
        return list(map(int, self.tokens[: self.prompt_length]))

    @property
    def n_supervised(self) -> int:
        return int(np.count_nonzero(np.frombuffer(self.supervised, np.uint8)))

    @property
    def width(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def sides(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Example):
            return NotImplemented
        return (
            self.line == other.line
            and np.array_equal(self.tokens, other.tokens)
            and np.array_equal(self.supervised, other.supervised)
        )

    __hash__ = None  # type: ignore[assignment]


class OfOneExample:
    """A row that is one example, with more that is known of it; its sizes are the example's."""

    __slots__ = ()
    example: Example

    @property
    def width(self) -> int:
        return self.example.width

    @property
    def n_tokens(self) -> int:
        return self.example.n_tokens

    @property
    def n_supervised(self) -> int:
        return self.example.n_supervised

    @property
    def sides(self) -> int:
        return 1

    @property
    def prompt(self) -> list[int]:
        return self.example.prompt

    @property
    def prompt_length(self) -> int:
        return self.example.prompt_length


class ChatMarker:
    """Turns conversations into tokens and masks."""

    def __init__(self, tokenizer: Any) -> None:
        self.coder = Coder(tokenizer)
        self._template = ChatTemplate(tokenizer)

    def __call__(self, row: ChatExample) -> Marked:
        """Raises ValueError with what is wrong with a row that the template cannot write."""
        n_trained = sum(message.trained for message in row.messages)
        if n_trained > MAX_TRAINED:
            raise ValueError(
                f"{n_trained} messages to learn, more than the {MAX_TRAINED} of a row; split it, or give some weight 0"
            )
        with _naming_template():
            text, spans = self._template.spans(row)
        return mark(text, spans, self.coder)

    def prompt(self, row: PromptExample) -> Marked:
        """Write what a server writes before it answers. Raises ValueError as for conversations."""
        with _naming_template():
            text = self._template.prompt(row.messages, row.tools)
        return mark_prompt(text, self.coder)


@contextmanager
def _naming_template() -> Iterator[None]:
    """Raise ValueError with whatever a template raises: it is foreign code."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"the base model's chat template cannot write it: {reason}") from error


def tokenize_rows(rows: Iterable[Row], tokenizer: ChatTokenizer, *, max_length: int, param: str) -> list[Example]:
    """Turn (line number, row) pairs into examples, in order.

    Raises InvalidTrainingData that names the first bad line and how many there are: a template that cannot render it,
    nothing to learn, more than `max_length` tokens.
    """
    marker = ChatMarker(tokenizer)
    examples, refused = [], []
    for line, row in rows:
        try:
            marked = marker(row)
        except ValueError as error:
            refused.append((line, str(error)))
            continue
        examples.append(as_example(line, marked))
    nothing = [(e.line, NOTHING_TO_LEARN) for e in examples if not e.width]
    too_long = [(e.line, too_long_text(e.width, max_length)) for e in examples if e.width > max_length]
    refuse(refused or nothing or too_long, param)
    return examples


NOTHING_TO_LEARN = "its assistant messages have no tokens to learn"


def too_long_text(length: int, max_length: int) -> str:
    return f"{length} tokens, more than the {max_length} of this server; shorten or split it"


def as_example(line: int, marked: Marked) -> Example:
    tokens = np.frombuffer(marked.ids, np.int32)[: marked.used]
    return Example(line, tokens, np.frombuffer(marked.mask, np.uint8)[: marked.used])


def refuse(problems: Sequence[tuple[int, str]], param: str, count: int = 0) -> None:
    """Raise InvalidTrainingData for the first of (line, problem) pairs, if any; `count` where not all are given."""
    if problems:
        line, problem = problems[0]
        role = param.removesuffix("_file")
        count = max(count, len(problems))
        more = f" {count} lines are like that." if count > 1 else ""
        raise InvalidTrainingData(
            f"The job failed due to an invalid {role} file. line {line}: {problem}.{more}",
            code=f"invalid_{param}",
            param=param,
        )
