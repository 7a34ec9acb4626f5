"""Sides in processes of their own, round after round: A B C, A B C, …, so that a machine's moods meet them all."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.training.rows import Data
from bench.training.work import Answer, Work

ROOT = Path(__file__).parents[2]
_COMPARED = 3
_SAME_LOSS = 3e-3
"""Relative: programs that print losses round them to four digits, and adapters start from different random weights."""


@dataclass(frozen=True)
class Side:
    """A program: its module in bench.training.sides and the Python that has it."""

    name: str
    python: str = sys.executable


@dataclass
class Measured:
    """What a side did in all rounds."""

    side: str
    tokens: int
    """Real tokens of the counted steps of one run: prompts included, padding not."""
    rows: int
    answers: list[Answer] = field(default_factory=list)

    @property
    def speeds(self) -> list[float]:
        return [self.tokens / sum(answer.seconds) for answer in self.answers]

    @property
    def tokens_per_s(self) -> float:
        return statistics.median(self.speeds)

    @property
    def rows_per_s(self) -> float:
        return self.tokens_per_s / self.tokens * self.rows

    @property
    def peak_mb(self) -> float:
        return statistics.median(answer.peak_mb for answer in self.answers)


def compare(sides: Sequence[Side], work: Work, data: Data, *, rounds: int) -> dict[str, Measured]:
    """Run every side `rounds` times, in turns. A side that ends with an error ends the measurement with its log."""
    order = data.tokens_per_row
    places = range(work.warmup * work.batch_size, work.total_steps * work.batch_size)
    tokens = sum(order[place % len(order)] for place in places)
    found = {side.name: Measured(side.name, tokens, len(places)) for side in sides}
    for number in range(rounds):
        for side in sides:
            answer = run(side, work, Path(work.jsonl).parent)
            found[side.name].answers.append(answer)
            print(
                f"  round {number + 1} {side.name:<14} {found[side.name].speeds[-1]:8.1f} tokens/s "
                f"{answer.peak_mb:6.0f} MB  losses {' '.join(f'{loss:.4f}' for loss in answer.losses[:4])}",
                flush=True,
            )
    _check_same_work(found)
    return found


def run(side: Side, work: Work, folder: Path) -> Answer:
    task, answer, log = (folder / f"{side.name}.{kind}" for kind in ("work.json", "answer.json", "log"))
    task.write_text(json.dumps(asdict(work)))
    answer.unlink(missing_ok=True)
    command = [side.python, "-m", f"bench.training.sides.{side.name}", str(task), str(answer)]
    with log.open("wb") as output:
        status = subprocess.call(command, cwd=ROOT, env=environment(), stdout=output, stderr=output)
    if status or not answer.exists():
        raise SystemExit(f"{side.name} ended with status {status}:\n{log.read_text(errors='replace')[-3000:]}")
    return Answer(**json.loads(answer.read_text()))


def environment() -> dict[str, str]:
    """The same for every side: all cores, nothing from the network, bytecode kept."""
    quiet = {
        "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "true", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "OMP_NUM_THREADS": str(os.cpu_count() or 1), **quiet}


def _check_same_work(found: dict[str, Measured]) -> None:
    """Equal losses of the first steps show that two sides train on the same tokens and apply the same steps.

    The very first one alone would not with DPO: it is ln 2 whatever the tokens are.
    """
    expected = found["ours"].answers[0].losses[:_COMPARED]
    for name, measured in found.items():
        for answer in measured.answers:
            losses = answer.losses[:_COMPARED]
            # Written so that a loss that is no number is not the same as anything.
            if not all(abs(a - b) <= _SAME_LOSS * b for a, b in zip(losses, expected, strict=True)):
                raise SystemExit(f"{name} does other work: its first losses are {losses}, ours {expected}")
