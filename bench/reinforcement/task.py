"""The task of both sides: questions with one right sentence, and a reward for coming close to it.

A model that has not learnt the sentence comes half as close, in many words; so there is something to learn from the
first step on, and each answer's reward is another.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from shared.grading.similarity import similarity

GRADER: dict[str, Any] = {
    "type": "text_similarity", "name": "close", "evaluation_metric": "fuzzy_match",
    "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Work:
    """One run: `warmup` steps that are not counted, then `steps` that are; each prompt is met once.

    LoRA on the seven linear layers, dropout 0, AdamW (betas 0.9 and 0.999, no weight decay), a constant learning rate,
    gradients clipped at a norm of 1, one update on the answers of a step, sampled at temperature 1.
    """

    base: str
    prompts: int = 4
    """In a step, each answered `group` times."""
    group: int = 8
    max_completion_tokens: int = 32
    warmup: int = 1
    steps: int = 10
    rank: int = 16
    alpha: int = 32
    learning_rate: float = 2e-4
    kl_coefficient: float = 0.01
    clip_low: float = 0.2
    clip_high: float = 0.28
    seed: int = 1
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    @property
    def total_steps(self) -> int:
        return self.warmup + self.steps

    def rows(self) -> list[dict[str, Any]]:
        """Return lines of a file for reinforcement, one for each prompt of all steps."""
        return [
            {
                "messages": [{"role": "user", "content": f"Which number comes after {number}?"}],
                "answer": f"After {number} comes {number + 1}.",
            }
            for number in range(self.prompts * self.total_steps)
        ]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a side did: seconds of each counted step, and the mean reward of the answers of every step."""

    seconds: list[float]
    rewards: list[float]
    versions: dict[str, str]

    @property
    def steps_per_minute(self) -> float:
        return 60 * len(self.seconds) / sum(self.seconds)


def reward(text: str, answer: str) -> float:
    """Compute what GRADER does."""
    return similarity("fuzzy_match", text, answer)


def counted(ends: list[float], work: Work) -> list[float]:
    """Return the seconds of the counted steps, from the moments at which all steps ended."""
    return [after - before for before, after in pairwise(ends[work.warmup - 1 :])]


def read_work(path: Path) -> Work:
    values = json.loads(path.read_text())
    return Work(**{**values, "targets": tuple(values["targets"])})
