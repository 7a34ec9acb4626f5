"""A look ahead of the first step: memory that is not enough shows at once, and so does the loss to start from.

It costs one piece of a batch forward and backward, less than a step, and one evaluation of the validation file where
that is small beside the training; else the validation file's longest batch alone. In a group it is a whole batch, of
which each process has its share as in training.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Generic

from services.trainer.data.batches import R
from services.trainer.data.dataset import Dataset
from services.trainer.failures import NonFiniteLoss
from services.trainer.memory import peak_memory_bytes
from services.trainer.objectives import Measured
from services.trainer.protocol import Rehearsed, TrainSpec
from services.trainer.session import TrainingSession

BASELINE_SHARE = 0.2
"""The whole validation file is evaluated if it has at most this share of the tokens that all epochs train on.

A forward pass is a third of a training step, so this adds at most some 7 % to the training.
"""


class Rehearsal(Generic[R]):
    """One job's; the session is left as it was, its random state included."""

    def __init__(self, session: TrainingSession[R], spec: TrainSpec, data: Dataset[R]) -> None:
        self._session = session
        self._spec = spec
        self._data = data

    def run(self, *, baseline: bool) -> Rehearsed:
        """Go through the longest rows; `baseline` asks for the loss before step 1. Raises NonFiniteLoss."""
        started = time.monotonic()
        try:
            self._session.rehearse(self._heaviest_piece(self._data.train))
            whole = self._evaluate() if baseline and self._is_small() else None
            if whole is None and self._data.valid:
                self._session.evaluate(self._heaviest_piece(self._data.valid))
        except NonFiniteLoss as error:
            when = "Before any training" if baseline else "Before training goes on"
            raise NonFiniteLoss(f"{when}: {error.message}") from error
        return Rehearsed(
            seconds=round(time.monotonic() - started, 3),
            peak_memory_bytes=peak_memory_bytes(self._session.model.device),
            full_valid_loss=None if whole is None else whole.loss,
            full_valid_mean_token_accuracy=None if whole is None else whole.accuracy,
        )

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
