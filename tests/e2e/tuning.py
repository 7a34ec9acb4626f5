"""Small fine-tuning jobs on a task that a few steps can learn."""

from __future__ import annotations

import json
from pathlib import Path

from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.running_stack import wait_for

COLOURS = {"sky": "blue", "grass": "green", "blood": "red", "snow": "white", "coal": "black", "lemon": "yellow"}


def colour_file(folder: Path, name: str, rows: int) -> Path:
    """Write `rows` examples of a task that a few steps can learn: one word, always the same answer to a question."""
    path = folder / name
    things = list(COLOURS)
    path.write_text(
        "".join(
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": f"Colour of {things[row % len(things)]}? ({row})"},
                        {"role": "assistant", "content": COLOURS[things[row % len(things)]]},
                    ]
                }
            )
            + "\n"
            for row in range(rows)
        )
    )
    return path


def submit(client: OpenAI, base: str, path: Path, **options: object) -> FineTuningJob:
    """Upload a file and start a job on it."""
    uploaded = client.files.create(file=path, purpose="fine-tune")
    return client.fine_tuning.jobs.create(model=base, training_file=uploaded.id, **options)  # type: ignore[arg-type]


def wait_for_end(client: OpenAI, job_id: str, timeout_s: float = 400) -> FineTuningJob:
    """Return the job at its end."""
    ends = {"succeeded", "failed", "cancelled"}
    wait_for(lambda: client.fine_tuning.jobs.retrieve(job_id).status in ends, timeout_s)
    return client.fine_tuning.jobs.retrieve(job_id)


def supervised(**hyperparameters: object) -> dict[str, object]:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
