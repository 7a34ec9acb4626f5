"""A look ahead of the first step: memory that is not enough shows at once, and so does the loss to start from.

Where memory could be short it costs one piece of a batch forward and backward, less than a step, and in a group a whole
batch, of which each process has its share as in training; where the estimate says that there is plenty, a few rows
forward. One evaluation of the validation file comes with it where that is small beside the training; else, where memory
could be short, the file's longest batch alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Generic

from services.trainer.data.cutting import R
from services.trainer.data.dataset import Dataset
from services.trainer.failures import NonFiniteLoss
from services.trainer.memory.peak import peak_memory_bytes, reachable_memory_bytes
from services.trainer.protocol import Rehearsed, TrainSpec
from services.trainer.training.objectives import Measured
from services.trainer.training.session import TrainingSession

BASELINE_SHARE = 0.2
"""The whole validation file is evaluated if it has at most this share of the tokens that all epochs train on.

A forward pass is a third of a training step, so this adds at most some 7 % to the training.
"""

AMPLE_SHARE = 0.5
"""Memory is ample where the estimate is at most this share of what there is: estimates are right within some 15 %."""
DRY_TOKENS = 128
"""Tokens of the rows that are read where memory is ample."""


class Rehearsal(Generic[R]):
    """One job's; the session is left as it was, its random state included."""

    def __init__(self, session: TrainingSession[R], spec: TrainSpec, data: Dataset[R]) -> None:
        self._session = session
        self._spec = spec
        self._data = data

    def run(self, *, baseline: bool) -> Rehearsed:
        """Go through the rows that tell most; `baseline` asks for the loss before step 1. Raises NonFiniteLoss."""
        started = time.monotonic()
        ample = not self._session.group.any(not self._memory_is_ample())  # what each reads decides whom it waits for
        try:
            if ample:
                self._session.evaluate(few_rows(self._data.train))
            else:
                self._session.rehearse(self._heaviest_piece(self._data.train))
            whole = self._evaluate() if baseline and self._is_small() else None
            if whole is None and self._data.valid and not ample:
                self._session.evaluate(self._heaviest_piece(self._data.valid))
        except NonFiniteLoss as error:
            when = "Before any training" if baseline else "Before training goes on"
            raise NonFiniteLoss(f"{when}: {error.message}") from error
        return Rehearsed(
            seconds=round(time.monotonic() - started, 3),
            peak_memory_bytes=peak_memory_bytes(self._session.model.device),
            longest_rows=not ample,
            full_valid_loss=None if whole is None else whole.loss,
            full_valid_mean_token_accuracy=None if whole is None else whole.accuracy,
        )

    def _memory_is_ample(self) -> bool:
        """Look at the estimate, which is for the path that was expected; and several processes share a machine."""
        estimated, model = self._spec.estimated_memory_bytes, self._session.model
        as_expected = bool(model.plain_because) == (self._spec.neftune_noise_alpha is not None)
        reachable = reachable_memory_bytes(model.device)
        if estimated is None or reachable is None or not as_expected:
            return False
        processes = self._session.group.size if model.device.type == "cpu" else 1
        return estimated * processes <= AMPLE_SHARE * reachable

    def _is_small(self) -> bool:
        trained = self._spec.n_epochs * sum(row.n_tokens for row in self._data.train)
        return sum(row.n_tokens for row in self._data.valid) <= BASELINE_SHARE * trained

    def _evaluate(self) -> Measured | None:
        return self._session.evaluate(self._data.valid) if self._data.valid else None

    def _heaviest_piece(self, rows: Sequence[R]) -> list[R]:
        """Pick what needs the most memory at once, of a batch of the longest rows."""
        longest = sorted(rows, key=lambda row: -row.width)[: self._spec.batch_size]
        if self._session.group.size > 1:
            return longest
        return max(self._session.objective.reader.pieces(longest), key=lambda piece: sum(row.n_tokens for row in piece))


def few_rows(rows: Sequence[R], most_tokens: int = DRY_TOKENS) -> list[R]:
    """Take rows of at most `most_tokens` tokens together, in their order; the shortest alone if the first has more."""
    few: list[R] = []
    used = 0
    for row in rows:
        if used + row.n_tokens > most_tokens:
            break
        few.append(row)
        used += row.n_tokens
    return few or [min(rows, key=lambda row: row.n_tokens)]
