"""How `auto` becomes a number, from the size of the data alone: before a process is started, and for estimates.

| hyperparameter           | rule                                                                                  |
| ------------------------ | ------------------------------------------------------------------------------------- |
| n_epochs                 | about 300 row visits for small files, 3 to 10 epochs; 2 from 3,000 rows, 1 from 10,000 |
| batch_size               | the power of two nearest to a sixty-fourth of the rows, 1 to 16; with KTO 4 to 16      |
| learning_rate_multiplier | 1 up to a batch of 8, then growing with the square root of the batch size             |
"""

from __future__ import annotations

import math
from typing import Literal

from shared.schemas.methods import SupervisedHyperparameters
from shared.training_data import Method

Auto = Literal["auto"]

_LEAST_BATCH_KTO = 4
"""Of fewer rows a batch says little about how far the model has moved, and has one label more often than both."""


def resolve(asked: SupervisedHyperparameters, n_examples: int, method: Method) -> SupervisedHyperparameters:
    """Replace each `auto` by its number; numbers stay as they are."""
    batch_size = _batch_size(asked.batch_size, n_examples, _LEAST_BATCH_KTO if method == "kto" else 1)
    return SupervisedHyperparameters(
        n_epochs=_n_epochs(asked.n_epochs, n_examples),
        batch_size=batch_size,
        learning_rate_multiplier=_learning_rate_multiplier(asked.learning_rate_multiplier, batch_size),
    )


def _n_epochs(asked: int | Auto, n_examples: int) -> int:
    if asked != "auto":
        return asked
    if n_examples >= 10_000:
        return 1
    if n_examples >= 3_000:
        return 2
    return min(10, max(3, round(300 / max(1, n_examples))))


def _batch_size(asked: int | Auto, n_examples: int, least: int) -> int:
    if asked != "auto":
        return asked
    return int(min(16, max(least, 2 ** round(math.log2(max(1.0, n_examples / 64))))))


def _learning_rate_multiplier(asked: float | Auto, batch_size: int) -> float:
    if asked != "auto":
        return float(asked)
    return round(max(1.0, math.sqrt(batch_size / 8)), 2)
