"""The training loop: step, evaluate, save, report, export, stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, NoReturn

from msgspec.structs import replace
from torch import Tensor

from services.trainer.data.batches import epoch_batches
from services.trainer.data.cutting import R, Row
from services.trainer.data.dataset import Dataset
from services.trainer.failures import StopRequested
from services.trainer.lease_file import LeaseWatch
from services.trainer.memory.peak import peak_memory_bytes
from services.trainer.protocol import CHECKPOINTS_FOLDER, Exported, Metrics, Reporter, Stepped, TrainSpec
from services.trainer.training.checkpoints import Position
from services.trainer.training.early_stopping import Verdict, judge
from services.trainer.training.evaluation import Evaluation, rewards
from services.trainer.training.event_files import EventFile
from services.trainer.training.export import export_model
from services.trainer.training.history import History
from services.trainer.training.objectives import Measured
from services.trainer.training.optim import base_learning_rate, learning_rate_at
from services.trainer.training.pace import Pace
from services.trainer.training.rehearsal import Rehearsal
from services.trainer.training.session import TrainingSession
from shared import tracing

MOST_OF_TIME = 0.05
"""Share of the time that saving in between may take: large models are saved less often."""


class TrainingLoop(Generic[R]):
    """One job's loop; every number in it follows from the spec and the data, so a resumed run gives the same ones."""

    def __init__(
        self, session: TrainingSession[R], spec: TrainSpec, data: Dataset[R], folder: Path, report: Reporter
    ) -> None:
        self.session = session
        self.group = session.group
        self.spec = spec
        self.data = data
        self.points = folder / CHECKPOINTS_FOLDER
        self.history = History(folder, Path(spec.adapters_folder))
        self.event_file = EventFile(folder)
        self.pace = Pace()
        self.report = report
        self.steps_per_epoch = math.ceil(len(data.train) / spec.batch_size)
        self.total_steps = self.steps_per_epoch * spec.n_epochs
        self.lease = LeaseWatch(folder)
        self.evaluation = Evaluation(
            session,
            data.valid,
            batch_size=spec.batch_size,
            steps_per_epoch=self.steps_per_epoch,
            full_interval=spec.evaluation_interval,
        )
        self.position = Position(step=0, trained_tokens=0)
        self._saved_at = time.monotonic()
        self._saved_step = 0
        self._save_took = 0.0

    def resume(self) -> int:
        """Go back to the newest resume point, if any; returns its step. What was reported after it happens again."""
        self.position = self.session.load(self.points) or self.position
        self._saved_step = self.position.step
        self.history.rewind(self.position.step)
        self.group.any(False)  # the others wait for that
        return self.position.step

    def rehearse(self) -> None:
        """Report what a look ahead finds: memory for the longest rows, and the loss to start from."""
        if self.group.any(self._is_over()):
            return
        rehearsal = Rehearsal(self.session, self.spec, self.data)
        self.report(rehearsal.run(baseline=self.position.step == 0))

    def run(self, should_stop: Callable[[], bool]) -> Exported | None:
        """Train to the end; report and return the final adapter, in a group in its first process.

        Raises StopRequested (having saved), NonFiniteLoss.
        """
        self._repeat_reports()
        batches: list[list[int]] = []
        while not self.group.any(self._is_over()):
            if self.group.any(should_stop()):
                self._stop()
            step = self.position.step + 1
            epoch, index = divmod(step - 1, self.steps_per_epoch)
            if index == 0 or not batches:
                batches = self._epoch(epoch)
            self._advance(step, [self.data.train[row] for row in batches[index]])
        return self._conclude()

    def _hold_lease(self) -> None:
        """Wait while the job's lease has run out; of a group the first process waits, and the others for it.

        Raises LeaseLost.
        """
        if self.group.leads:
            self.lease.hold()

    def _is_over(self) -> bool:
        """Whether the last step is done, or an epoch has ended after which it does not pay to go on."""
        return self.position.step >= self.total_steps or (
            self.position.step > 0 and self._ends_epoch(self.position.step) and self._verdict().over
        )

    def _verdict(self) -> Verdict:
        """Judge the epochs so far; without early stopping the last one is the best."""
        rule = self.spec.early_stopping
        epochs = [metrics.full_valid_loss for metrics in self.history.steps() if self._ends_epoch(metrics.step)]
        losses = [loss for loss in epochs if loss is not None]
        if rule is None or not losses:
            return Verdict(best=self.position.step // self.steps_per_epoch - 1, over=False)
        return judge(losses, rule)

    def _stop(self) -> NoReturn:
        if self.position.step > self._saved_step:
            self._save()
        raise StopRequested(self.position.step)

    def _epoch(self, epoch: int) -> list[list[int]]:
        lengths = [row.width for row in self.data.train]
        return epoch_batches(lengths, self.spec.batch_size, seed=self.spec.seed, epoch=epoch)

    def _advance(self, step: int, rows: list[R]) -> None:
        """One step. At an epoch's end it is saved before it is reported: a reported epoch is never taken back."""
        metrics = self._step(step, rows)
        self._hold_lease()
        self.history.add_step(metrics)
        self.event_file.add(metrics)
        self.position = Position(step=step, trained_tokens=self.position.trained_tokens + metrics.tokens)
        is_saved = self._ends_epoch(step) or self._is_due(step)
        if is_saved:
            self._save()
        self.report(Stepped(metrics=metrics, checkpoint_s=round(self._save_took, 4) if is_saved else None))
        if self._is_exported(step) and not self._is_over():
            self._export(metrics)

    def _step(self, step: int, rows: list[R]) -> Metrics:
        """Learn from the rows of a step, and evaluate where that is due."""
        return self._accounted(self.evaluation.added_to(self._train(step, rows)), rows)

    def _is_exported(self, step: int) -> bool:
        """Whether the model after this step stays as a checkpoint."""
        return self._ends_epoch(step) and self._exports_epochs

    @property
    def _exports_epochs(self) -> bool:
        """Whether each epoch becomes a model of its own: whole ones would fill a disk."""
        return self.spec.finetuning_type == "lora"

    def _is_due(self, step: int) -> bool:
        """Whether it is time for another resume point."""
        if self.spec.checkpoint_interval is not None:
            return step % self.spec.checkpoint_interval == 0
        interval = max(self.spec.snapshot_interval_s, self._save_took / MOST_OF_TIME)
        is_due = time.monotonic() - self._saved_at > interval
        return self.group.any(is_due) if self.group.divides else is_due

    def _train(self, step: int, rows: list[R]) -> Metrics:
        started = time.monotonic()
        self.group.seed(self.spec.seed, step)
        measured = self.session.forward_backward(rows)
        learning_rate = self._learning_rate(step)
        grad_norm = self.session.optim_step(learning_rate)
        metrics = self._metrics(step, measured, learning_rate, grad_norm, time.monotonic() - started)
        return replace(metrics, **rewards(measured, ""))

    def _metrics(self, step: int, measured: Measured, learning_rate: float, grad_norm: float, took_s: float) -> Metrics:
        """Form the metrics that every method has."""
        return Metrics(
            step=step,
            total_steps=self.total_steps,
            epoch=(step - 1) // self.steps_per_epoch + 1,
            train_loss=measured.loss,
            train_mean_token_accuracy=measured.accuracy,
            tokens=measured.n_tokens,
            tokens_per_s=round(measured.n_tokens / took_s, 1),
            learning_rate=learning_rate,
            grad_norm=grad_norm,
        )

    def _accounted(self, metrics: Metrics, rows: Sequence[Row]) -> Metrics:
        """Add what was learnt from, and what the step and the evaluation behind it have cost."""
        return replace(
            metrics,
            supervised_tokens=sum(row.n_supervised for row in rows),
            peak_memory_bytes=peak_memory_bytes(self.session.model.device),
            seconds_left=self.pace.seconds_left(metrics.step, self.total_steps),
        )

    def _learning_rate(self, step: int) -> float:
        return learning_rate_at(
            step,
            self.total_steps,
            base_learning_rate(self.spec.method, self.spec.finetuning_type) * self.spec.learning_rate_multiplier,
            schedule=self.spec.lr_schedule,
            warmup_ratio=self.spec.warmup_ratio,
        )

    def _ends_epoch(self, step: int) -> bool:
        return step % self.steps_per_epoch == 0

    def _save(self) -> None:
        best_step = None if self.spec.early_stopping is None else self._best_step()
        self._hold_lease()
        started = time.monotonic()
        with tracing.span("checkpoint.write", step=self.position.step):
            self.session.save(self.points, self.position, best_step=best_step)
        self._saved_step = self.position.step
        self._saved_at = time.monotonic()
        self._save_took = self._saved_at - started

    def _repeat_reports(self) -> None:
        """Say again what a process that died may not have been able to say; whoever listens knows the steps it has."""
        exports = self.history.exports()
        for exported in exports:
            if not exported.final:
                self.report(exported)
        steps = self.history.steps()
        for metrics in steps:
            self.report(Stepped(metrics=metrics))
        if steps:
            last_step = steps[-1].step
            done = any(e.metrics.step == last_step and not e.final for e in exports)
            if self._is_exported(last_step) and not done and not self._is_over():
                self._export(steps[-1])

    def _conclude(self) -> Exported | None:
        """Report the final model: that of the last step, or with early stopping of the best epoch, now loaded."""
        steps = self.history.steps()
        last = steps[-1]
        earlier = {exported.metrics.step for exported in self.history.exports()}
        if self._exports_epochs and self._best_step() != last.step and last.step not in earlier:
            self._export(last)
        best_step = self._go_to_best()
        best = next(metrics for metrics in steps if metrics.step == best_step)
        final = replace(
            self._write(best),
            final=True,
            trained_tokens=self.position.trained_tokens,
            probes=self.data.probes(self.spec.n_probes),
            remark=self._remark(last, best),
        )
        self._report(final)
        return final

    def _best_step(self) -> int:
        return (self._verdict().best + 1) * self.steps_per_epoch

    def _go_to_best(self) -> int:
        """Have the parameters of the best epoch's end, in every process; returns its step."""
        best_step = self.group.agree(self._best_step())
        if best_step != self.position.step:
            exported = next((e for e in self.history.exports() if e.metrics.step == best_step), None)
            if exported is not None and self._exports_epochs:
                self.session.load_adapter(Path(exported.folder))
            else:
                self.session.load_parameters(self.points, best_step)
        return best_step

    def _remark(self, last: Metrics, best: Metrics) -> str:
        if self.spec.early_stopping is None or (best is last and last.step == self.total_steps):
            return ""
        ended = "" if last.step == self.total_steps else f"Training stopped early, after epoch {last.epoch}. "
        return (
            f"{ended}The final model is that of epoch {best.epoch} (step {best.step}), which has the lowest full "
            f"validation loss: {best.full_valid_loss:.4f}"
        )

    def _export(self, metrics: Metrics) -> None:
        self._report(self._write(metrics))

    def _write(self, metrics: Metrics) -> Exported:
        """Export the adapter, or the whole model, as it is now."""
        folder, digest = self._written(metrics)
        return Exported(
            folder=str(folder),
            sha256=digest,
            metrics=metrics,
            final=False,
            trained_tokens=self.position.trained_tokens,
        )

    def _written(self, metrics: Metrics | None) -> tuple[Path, str]:
        """Write what is trained as it is now, None being before the first step; returns its folder and digest."""
        self._hold_lease()
        with tracing.span("model.export", step=0 if metrics is None else metrics.step):
            return export_model(self.session.model, self._whole_weights(), self.spec, metrics)

    def _whole_weights(self) -> dict[str, Tensor]:
        """Put all weights of a whole model together, in every process; nothing where an adapter is trained."""
        if not self.session.model.is_whole:
            return {}
        return {name: self.group.whole(parameter.detach()) for name, parameter in self.session.parameters.items()}

    def _report(self, exported: Exported) -> None:
        """Report a folder that is in its place, once it is known as one of the job's: what is not may be deleted."""
        self.history.add_export(exported)
        self.report(exported)
