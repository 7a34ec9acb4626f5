"""One stack with the embedded base model for all end-to-end tests: starting vLLM takes most of a minute."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.running_stack import RunningStack, running_stack, wait_for


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/e2e" in item.path.as_posix():
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("stack") / "data") as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="session")
def client(stack: RunningStack) -> OpenAI:
    return stack.client


@pytest.fixture(scope="session")
def base(client: OpenAI) -> str:
    return next(model.id for model in client.models.list() if model.owned_by == "system")


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


@pytest.fixture(scope="session")
def tuned_job(client: OpenAI, base: str, tmp_path_factory: pytest.TempPathFactory) -> FineTuningJob:
    """A job that has succeeded; several tests look at its model."""
    folder = tmp_path_factory.mktemp("colours")
    validation = client.files.create(file=colour_file(folder, "validation.jsonl", 12), purpose="fine-tune")
    job = submit(
        client, base, colour_file(folder, "train.jsonl", 48), validation_file=validation.id, suffix="colours", seed=7,
        method=supervised(n_epochs=2, batch_size=8, learning_rate_multiplier=2.0), metadata={"team": "tests"},
    )  # fmt: skip
    return wait_for_end(client, job.id)
