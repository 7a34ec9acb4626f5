"""Looking at held-out rows: a batch of them now and then, all of them at an epoch's end and when it was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic

from msgspec.structs import replace

from services.trainer.data.cutting import R
from services.trainer.protocol import Metrics
from services.trainer.training.objectives import Measured
from services.trainer.training.session import TrainingSession

INTERVAL = 5
"""Steps between looks at a batch of held-out rows; more in long epochs, so that there are at most 20 looks."""


class Evaluation(Generic[R]):
    """Adds what held-out rows say to a step's metrics; which rows follows from the step alone."""

    def __init__(
        self,
        session: TrainingSession[R],
        rows: Sequence[R],
        *,
        batch_size: int,
        steps_per_epoch: int,
        full_interval: int | None = None,
    ) -> None:
        self._session = session
        self._rows = rows
        self._batch_size = batch_size
        self._steps_per_epoch = steps_per_epoch
        self._interval = max(INTERVAL, steps_per_epoch // 20)
        self._full_interval = full_interval or steps_per_epoch

    def added_to(self, metrics: Metrics) -> Metrics:
        """Return the metrics of a step with what there is to say after it; without held-out rows, nothing."""
        if not self._rows:
            return metrics
        step = metrics.step
        ends_epoch = step % self._steps_per_epoch == 0
        if ends_epoch or step % self._full_interval == 0:
            full = self._session.evaluate(self._rows)
            metrics = replace(
                metrics,
                full_valid_loss=full.loss,
                full_valid_mean_token_accuracy=full.accuracy,
                **rewards(full, "full_valid_"),
            )
        if step % self._interval == 0 or step == 1 or ends_epoch:
            few = self._session.evaluate(self._few(step))
            metrics = replace(
                metrics, valid_loss=few.loss, valid_mean_token_accuracy=few.accuracy, **rewards(few, "valid_")
            )
        return metrics

    def _few(self, step: int) -> list[R]:
        """Walk through the rows, a batch at a time, round and round."""
        count = min(self._batch_size, len(self._rows))
        first = (step - 1) * count
        return [self._rows[(first + offset) % len(self._rows)] for offset in range(count)]


def rewards(measured: Measured, prefix: str) -> dict[str, float]:
    """Name the rewards of preferences as Metrics does; empty for supervised training."""
    found = measured.rewards
    if found is None:
        return {}
    names = ("chosen", "rejected", "margin", "accuracy")
    named = {f"{prefix}rewards_{name}": getattr(found, name) for name in names}
    named[f"{prefix}kl"] = measured.divergence
    return {name: value for name, value in named.items() if value is not None}
