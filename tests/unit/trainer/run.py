"""A job that was trained in the test's own process, and what it said."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic

from msgspec.structs import replace

from services.trainer.data.cutting import R
from services.trainer.protocol import Exported, Message, Metrics, Stepped
from services.trainer.training.loop import TrainingLoop
from services.trainer.training.session import TrainingSession


@dataclass
class Run(Generic[R]):
    session: TrainingSession[R]
    loop: TrainingLoop[R]
    messages: list[Message] = field(default_factory=list)

    @property
    def steps(self) -> list[Metrics]:
        return [message.metrics for message in self.messages if isinstance(message, Stepped)]

    @property
    def exports(self) -> list[Exported]:
        return [message for message in self.messages if isinstance(message, Exported)]

    def curve(self) -> list[Metrics]:
        """What every run of the job says alike: time and memory are the machine's."""
        return [replace(metrics, tokens_per_s=0.0, peak_memory_bytes=None, seconds_left=None) for metrics in self.steps]
