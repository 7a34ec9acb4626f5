"""What a side is told, and what it answers. Standard library only: sides run in different environments."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Work:
    """One run: `warmup` steps that are not counted, then `steps` that are, on the rows in their order, over and over.

    LoRA on the seven linear layers, unless every weight is trained, dropout 0, float32, AdamW (betas 0.9 and 0.999, no
    weight decay), a constant learning rate, gradients clipped at a norm of 1.
    """

    base: str
    jsonl: str
    """The rows in OpenAI's format."""
    tokens: str
    """The same as JSON: [{input_ids, labels}] for supervised, [{prompt, chosen, rejected}] as text for dpo and orpo,
    [{prompt, completion, label}] as text for kto."""
    method: str = "supervised"
    quantization: str = "none"
    finetuning_type: str = "lora"
    """`full` trains every weight, at a tenth of the learning rate."""
    batch_size: int = 8
    warmup: int = 2
    steps: int = 4
    rank: int = 16
    alpha: int = 32
    learning_rate: float = 2e-4
    beta: float = 0.1
    seed: int = 1
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    @property
    def rate(self) -> float:
        return self.learning_rate / 10 if self.finetuning_type == "full" else self.learning_rate

    @property
    def total_steps(self) -> int:
        return self.warmup + self.steps

    def read_tokens(self) -> list[dict[str, Any]]:
        return json.loads(Path(self.tokens).read_text())  # type: ignore[no-any-return]


@dataclass(kw_only=True)
class Answer:
    """Losses as the side reports them, the seconds of each counted step, and the process's peak memory."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)


class Clock:
    """Call `step` at the end of each optimiser step; the time between two calls is one step's, data included."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.answer = Answer()
        self._ends: list[float] = []

    def step(self) -> None:
        self._ends.append(time.perf_counter())
        if len(self._ends) == self.work.total_steps:
            # Read here, so that what a program writes at the end of a run (a checkpoint, a model card) is left out.
            self.answer.peak_mb = peak_memory_mb()

    def finish(self) -> Answer:
        assert len(self._ends) == self.work.total_steps, f"{len(self._ends)} steps instead of {self.work.total_steps}"
        ends = self._ends[self.work.warmup - 1 :]
        self.answer.seconds = [after - before for before, after in pairwise(ends)]
        return self.answer


def peak_memory_mb() -> float:
    """The largest resident memory of this process so far (VmHWM), in MB of a million bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def run(side: Callable[[Work], Answer], *packages: str) -> None:
    """Read the work, do it, write the answer: the main function of every side."""
    from importlib.metadata import version

    values = json.loads(Path(sys.argv[1]).read_text())
    answer = side(Work(**{**values, "targets": tuple(values["targets"])}))
    answer.versions = {package: version(package) for package in packages}
    Path(sys.argv[2]).write_text(json.dumps(asdict(answer)))
