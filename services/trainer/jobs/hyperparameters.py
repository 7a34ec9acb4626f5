"""How `auto` becomes a number, from the size of the data alone. No torch: the worker resolves before it starts a child.

| hyperparameter           | rule                                                                                  |
| ------------------------ | ------------------------------------------------------------------------------------- |
| n_epochs                 | about 300 row visits for small files, 3 to 10 epochs; 2 from 3,000 rows, 1 from 10,000 |
| batch_size               | the power of two nearest to a sixty-fourth of the rows, 1 to 16; with KTO 4 to 16      |
| learning_rate_multiplier | 1 up to a batch of 8, then growing with the square root of the batch size             |

For reinforcement, where a step costs as much time as its answers take:

| hyperparameter           | rule                                                                                  |
| ------------------------ | ------------------------------------------------------------------------------------- |
| batch_size               | 8 prompts; fewer if the file has fewer                                                |
| n_epochs                 | about 60 steps, 1 to 10 epochs                                                        |
| learning_rate_multiplier | 1: the base rate is for steps of any size, since advantages are normalised            |
| compute_multiplier       | 1, which is 8 answers per prompt; with selftune.reinforcement.group_size, that over 8  |
| eval_interval            | a tenth of all steps, at least 1                                                      |
| eval_samples             | 1                                                                                     |

The group size itself is 8 times compute_multiplier, 2 to 64.
"""

from __future__ import annotations

import math
from typing import Literal, TypeVar

from msgspec.structs import replace

from shared.schemas.methods import ReinforcementHyperparameters, SupervisedHyperparameters
from shared.training_data import Method

Auto = Literal["auto"]
_Number = TypeVar("_Number", int, float)

_LEAST_BATCH_KTO = 4
"""Of fewer rows a batch says little about how far the model has moved, and has one label more often than both."""
_PROMPTS = 8
_STEPS = 60
_MOST_EPOCHS = 10
_ANSWERS = 8
"""Answers per prompt at a compute_multiplier of 1."""
_LEAST_GROUP, _MOST_GROUP = 2, 64


def resolve(asked: SupervisedHyperparameters, n_examples: int, method: Method) -> SupervisedHyperparameters:
    """Replace each `auto` by its number; numbers stay as they are."""
    batch_size = _batch_size(asked.batch_size, n_examples, _LEAST_BATCH_KTO if method == "kto" else 1)
    return SupervisedHyperparameters(
        n_epochs=_n_epochs(asked.n_epochs, n_examples),
        batch_size=batch_size,
        learning_rate_multiplier=_learning_rate_multiplier(asked.learning_rate_multiplier, batch_size),
    )


def resolve_reinforcement(
    asked: ReinforcementHyperparameters, n_prompts: int, *, answers: int
) -> ReinforcementHyperparameters:
    """Replace each `auto` by its number; numbers stay as they are. `answers` are those to each prompt."""
    batch_size = _given(asked.batch_size, min(_PROMPTS, max(1, n_prompts)))
    steps_per_epoch = max(1, math.ceil(n_prompts / batch_size))
    n_epochs = _given(asked.n_epochs, min(_MOST_EPOCHS, max(1, round(_STEPS / steps_per_epoch))))
    return replace(
        asked,
        n_epochs=n_epochs,
        batch_size=batch_size,
        learning_rate_multiplier=float(_given(asked.learning_rate_multiplier, 1.0)),
        compute_multiplier=float(_given(asked.compute_multiplier, answers / _ANSWERS)),
        eval_interval=_given(asked.eval_interval, max(1, round(n_epochs * steps_per_epoch / 10))),
        eval_samples=_given(asked.eval_samples, 1),
    )


def _given(asked: _Number | Auto, otherwise: _Number) -> _Number:
    return otherwise if isinstance(asked, str) else asked


def group_size(compute_multiplier: float | Auto) -> int:
    """Return how many answers to a prompt reinforcement tries: 8 at 1, never fewer than two, which can be compared."""
    wanted = round(_ANSWERS * _given(compute_multiplier, 1.0))
    return min(_MOST_GROUP, max(_LEAST_GROUP, wanted))


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
