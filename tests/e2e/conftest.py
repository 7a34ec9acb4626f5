"""One stack with the embedded base model for all end-to-end tests: starting vLLM takes most of a minute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.running_stack import RunningStack, running_stack
from tests.e2e.tuning import colour_file, submit, supervised, wait_for_end


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/e2e" in item.path.as_posix():
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    # The webhooks of these tests arrive on this machine, which a server refuses to send to unless it is told to.
    environment = {"SELFTUNE_WEBHOOK_ALLOW_PRIVATE": "true"}
    with running_stack(tmp_path_factory.mktemp("stack") / "data", environment) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="session")
def client(stack: RunningStack) -> OpenAI:
    return stack.client


@pytest.fixture(scope="session")
def base(client: OpenAI) -> str:
    return next(model.id for model in client.models.list() if model.owned_by == "system")


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
