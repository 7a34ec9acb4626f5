"""The training loop of every process of a group but the first: computing its share, and nothing else."""

from __future__ import annotations

from services.trainer.data.cutting import R
from services.trainer.protocol import Exported
from services.trainer.training.checkpoints import Position
from services.trainer.training.loop import TrainingLoop


class Follower(TrainingLoop[R]):
    """Takes part in every step and evaluation; the first process decides when it is over, and keeps what there is."""

    def resume(self) -> int:
        self.group.any(False)  # the first process has tidied up, and its point is the newest
        self.position = self.session.load(self.points) or self.position
        self._saved_step = self.position.step
        return self.position.step

    def _is_over(self) -> bool:
        return False

    def _advance(self, step: int, rows: list[R]) -> None:
        metrics = self.evaluation.added_to(self._train(step, rows))
        self.position = Position(step=step, trained_tokens=self.position.trained_tokens + metrics.tokens)
        if self.group.divides and (self._ends_epoch(step) or self._is_due(step)):
            self._save()

    def _save(self) -> None:
        """Give the first process this one's share, if it has one."""
        if self.group.divides:
            super()._save()

    def _best_step(self) -> int:
        return 0  # the first process knows

    def _repeat_reports(self) -> None:
        pass

    def _conclude(self) -> Exported | None:
        self._go_to_best()
        self._whole_weights()
        return None
