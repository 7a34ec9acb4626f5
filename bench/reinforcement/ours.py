"""A reinforcement job on a stack of its own, as `selftune up` starts it: answers by vLLM, updates by the trainer."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openai import OpenAI

from bench.reinforcement.task import GRADER, Answer, Work
from services.trainer.training.optim import REINFORCEMENT_LEARNING_RATE
from shared.settings import ENV_PREFIX
from tests.api_server import NO_METRICS
from tests.e2e.running_stack import running_stack

_ENDED = {"succeeded", "failed", "cancelled"}


def train(work: Work, folder: Path) -> Answer:
    """Start a stack, have it train, and stop it; only the job's steps are timed."""
    with running_stack(folder, _settings({"base_model": work.base, "lora_rank": work.rank, **NO_METRICS})) as stack:
        stack.wait_until_ready()
        steps = _trained(stack.client, work)
    assert len(steps) == work.total_steps, f"{len(steps)} steps instead of {work.total_steps}"
    return Answer(
        seconds=[step["step_s"] for step in steps[work.warmup :]],
        rewards=[step["rollouts"]["reward_mean"] for step in steps],
        versions={},
    )


def _settings(chosen: Mapping[str, Any]) -> dict[str, str]:
    return {f"{ENV_PREFIX}{name.upper()}": str(value) for name, value in chosen.items()}


def _trained(client: OpenAI, work: Work) -> list[dict[str, Any]]:
    """Return the numbers of each step of a job, in order."""
    content = b"".join(json.dumps(row).encode() + b"\n" for row in work.rows())
    uploaded = client.files.create(file=("questions.jsonl", content), purpose="fine-tune")
    base = next(model.id for model in client.models.list() if model.owned_by == "system")
    asked: Any = {
        "grader": GRADER,
        "hyperparameters": {
            "n_epochs": 1, "batch_size": work.prompts,
            "learning_rate_multiplier": work.learning_rate / REINFORCEMENT_LEARNING_RATE,
        },
    }  # fmt: skip
    job = client.fine_tuning.jobs.create(
        model=base,
        training_file=uploaded.id,
        seed=work.seed,
        method={"type": "reinforcement", "reinforcement": asked},
        extra_body={"selftune": _options(work)},
    )
    while (found := client.fine_tuning.jobs.retrieve(job.id)).status not in _ENDED:
        time.sleep(0.5)
    if found.status != "succeeded":
        raise SystemExit(f"{found.id} {found.status}: {found.error}")
    events: list[Any] = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
    return [event.data for event in reversed(events) if event.type == "metrics"]


def _options(work: Work) -> dict[str, Any]:
    return {
        "rank": work.rank, "alpha": work.alpha, "target_modules": list(work.targets), "dtype": "float32",
        "lr_schedule": "constant", "warmup_ratio": 0.0,
        "reinforcement": {
            "group_size": work.group, "max_completion_tokens": work.max_completion_tokens, "temperature": 1.0,
            "kl_coefficient": work.kl_coefficient, "clip_low": work.clip_low, "clip_high": work.clip_high,
        },
    }  # fmt: skip
