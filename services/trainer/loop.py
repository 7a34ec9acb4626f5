"""The training loop: step, evaluate, save, report, export, stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from msgspec.structs import replace

from services.trainer.checkpoints import Position
from services.trainer.data.batches import epoch_batches
from services.trainer.data.chat import Example
from services.trainer.export import export_adapter
from services.trainer.failures import StopRequested
from services.trainer.history import History
from services.trainer.optim import learning_rate_at
from services.trainer.protocol import CHECKPOINTS_FOLDER, Exported, Metrics, Reporter, Stepped, TrainSpec
from services.trainer.session import TrainingSession

VALIDATION_INTERVAL = 5
"""Steps between looks at a batch of held-out rows; more in long epochs, so that there are at most 20 looks."""
PROBE_TOKENS = 512
"""Prompts longer than this are not offered for the parity check: it has to be quick."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Tokenised rows; `valid` is empty when there is no validation file."""

    train: Sequence[Example]
    valid: Sequence[Example]

    def probes(self, count: int) -> list[list[int]]:
        """Pick the shortest prompts, of held-out rows if there are any, as token ids."""
        prompts = sorted(
            {tuple(e.tokens[: e.prompt_length]) for e in self.valid or self.train}, key=lambda p: (len(p), p)
        )
        return [list(prompt) for prompt in prompts[:count] if len(prompt) <= PROBE_TOKENS]


class TrainingLoop:
    """One job's loop; every number in it follows from the spec and the data, so a resumed run gives the same ones."""

    def __init__(
        self, session: TrainingSession, spec: TrainSpec, data: Dataset, folder: Path, report: Reporter
    ) -> None:
        self.session = session
        self.spec = spec
        self.data = data
        self.points = folder / CHECKPOINTS_FOLDER
        self.history = History(folder)
        self.report = report
        self.steps_per_epoch = math.ceil(len(data.train) / spec.batch_size)
        self.total_steps = self.steps_per_epoch * spec.n_epochs
        self.validation_interval = max(VALIDATION_INTERVAL, self.steps_per_epoch // 20)
        self.position = Position(step=0, trained_tokens=0)
        self._saved_at = time.monotonic()
        self._saved_step = 0

    def resume(self) -> int:
        """Go back to the newest resume point, if any; returns its step. What was reported after it happens again."""
        self.position = self.session.load(self.points) or self.position
        self._saved_step = self.position.step
        self.history.rewind(self.position.step)
        return self.position.step

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Train to the end and report the final adapter. Raises StopRequested (having saved), NonFiniteLoss."""
        self._repeat_reports()
        batches: list[list[int]] = []
        for step in range(self.position.step + 1, self.total_steps + 1):
            if should_stop():
                self._stop()
            epoch, index = divmod(step - 1, self.steps_per_epoch)
            if index == 0 or not batches:
                batches = self._epoch(epoch)
            self._advance(step, [self.data.train[row] for row in batches[index]])

    def _stop(self) -> NoReturn:
        if self.position.step > self._saved_step:
            self._save()
        raise StopRequested(self.position.step)

    def _epoch(self, epoch: int) -> list[list[int]]:
        lengths = [len(example.tokens) for example in self.data.train]
        return epoch_batches(lengths, self.spec.batch_size, seed=self.spec.seed, epoch=epoch)

    def _advance(self, step: int, rows: list[Example]) -> None:
        """One step. At an epoch's end it is saved before it is reported: a reported epoch is never taken back."""
        metrics = self._validated(self._train(step, rows))
        self.history.add_step(metrics)
        self.position = Position(step=step, trained_tokens=self.position.trained_tokens + metrics.tokens)
        if self._ends_epoch(step) or time.monotonic() - self._saved_at > self.spec.snapshot_interval_s:
            self._save()
        self.report(Stepped(metrics=metrics))
        if self._ends_epoch(step):
            self._export(metrics)

    def _train(self, step: int, rows: list[Example]) -> Metrics:
        started = time.monotonic()
        measured = self.session.forward_backward(rows)
        learning_rate = learning_rate_at(step, self.total_steps, self.spec.learning_rate_multiplier)
        grad_norm = self.session.optim_step(learning_rate)
        return Metrics(
            step=step,
            total_steps=self.total_steps,
            epoch=(step - 1) // self.steps_per_epoch + 1,
            train_loss=measured.loss,
            train_mean_token_accuracy=measured.accuracy,
            tokens=measured.n_tokens,
            tokens_per_s=round(measured.n_tokens / (time.monotonic() - started), 1),
            learning_rate=learning_rate,
            grad_norm=grad_norm,
        )

    def _validated(self, metrics: Metrics) -> Metrics:
        """Add a batch of held-out rows now and then, and all of them at an epoch's end."""
        if not self.data.valid:
            return metrics
        if self._ends_epoch(metrics.step):
            full = self.session.evaluate(self.data.valid)
            metrics = replace(metrics, full_valid_loss=full.loss, full_valid_mean_token_accuracy=full.accuracy)
        if metrics.step % self.validation_interval == 0 or metrics.step == 1 or self._ends_epoch(metrics.step):
            few = self.session.evaluate(self._held_out_rows(metrics.step))
            metrics = replace(metrics, valid_loss=few.loss, valid_mean_token_accuracy=few.accuracy)
        return metrics

    def _held_out_rows(self, step: int) -> list[Example]:
        """Walk through the validation rows, a batch at a time, round and round."""
        count = min(self.spec.batch_size, len(self.data.valid))
        first = (step - 1) * count
        return [self.data.valid[(first + offset) % len(self.data.valid)] for offset in range(count)]

    def _ends_epoch(self, step: int) -> bool:
        return step % self.steps_per_epoch == 0

    def _save(self) -> None:
        self.session.save(self.points, self.position)
        self._saved_step = self.position.step
        self._saved_at = time.monotonic()

    def _repeat_reports(self) -> None:
        """Say again what a process that died may not have been able to say; whoever listens knows the steps it has."""
        exports = self.history.exports()
        for exported in exports:
            if not exported.final:
                self.report(exported)
        steps = self.history.steps()
        if steps:
            self.report(Stepped(metrics=steps[-1]))
            last_step = steps[-1].step
            done = any(e.metrics.step == last_step and not e.final for e in exports)
            if self._ends_epoch(last_step) and not done:
                self._export(steps[-1])

    def _export(self, metrics: Metrics) -> None:
        final = metrics.step == self.total_steps
        folder, digest = export_adapter(self.session.model.peft, self.spec, metrics)
        exported = Exported(
            folder=str(folder),
            sha256=digest,
            metrics=metrics,
            final=final,
            trained_tokens=self.position.trained_tokens,
            probes=self.data.probes(self.spec.n_probes) if final else [],
        )
        self.report(exported)
        self.history.add_export(exported)
