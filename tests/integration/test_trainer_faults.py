"""Faults in the worker itself, on a real Valkey: the job ends with the reason, and nothing is told twice or never."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from services.trainer.serving import Serving
from services.trainer.supervise import train_job
from services.trainer.validating import validate_job
from shared.errors import StoreUnavailable
from shared.settings import Settings
from shared.states import JobState
from tests.api_server import make_base
from tests.integration.trainer_stack import BASE_ID, Client, settings, tiny_base, with_client
from tests.unit.trainer.tiny import training_rows

__all__ = ["settings", "tiny_base"]


def no_space(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


async def queued(client: Client, base: Path) -> str:
    """Have a job that has been validated."""
    await client.stores.registry.put_base(replace(make_base(BASE_ID), path=str(base), context_length=128))
    job_id = await client.submit(await client.upload(training_rows(12)))
    await validate_job(client.stores, job_id)
    return job_id


async def trained(client: Client, job_id: str) -> None:
    serving = Serving(client.stores)
    assert not await train_job(client.stores, serving, job_id)
    await serving.close()


@pytest.mark.parametrize(
    "place",
    ["services.trainer.job_folder.write_atomic", "services.trainer.publishing.result_file_id"],
    ids=["beginning", "publishing"],
)
def test_full_disk_in_the_worker_fails_the_job_and_takes_its_model_back(
    settings: Settings, tiny_base: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    async def story(client: Client) -> None:
        job_id = await queued(client, tiny_base)
        monkeypatch.setattr(place, no_space)
        await trained(client, job_id)
        record = await client.stores.jobs.get(job_id)
        assert record.status is JobState.FAILED and record.error is not None
        assert record.error.code == "disk_full"
        assert await client.stores.registry.get(record.model_name) is None

    with_client(settings, story)


def test_full_disk_while_files_are_read_fails_the_job(
    settings: Settings, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(client: Client) -> None:
        monkeypatch.setattr("services.trainer.validating.tokenize_files", no_space)
        record = await client.stores.jobs.get(await queued(client, tiny_base))
        assert record.status is JobState.FAILED and record.error is not None
        assert (record.error.code, record.validations) == ("disk_full", 0)

    with_client(settings, story)


def test_validation_waits_for_a_database_that_is_away(settings: Settings, tiny_base: Path) -> None:
    async def story(client: Client) -> None:
        get, calls = client.stores.files.get, iter(range(100))

        async def away_once(*arguments: object, **more: object) -> object:
            if next(calls) == 0:
                raise StoreUnavailable("Redis does not answer.")
            return await get(*arguments, **more)  # type: ignore[arg-type]

        client.stores.files.get = away_once  # type: ignore[method-assign,assignment]
        record = await client.stores.jobs.get(await queued(client, tiny_base))
        assert (record.status, record.validations) == (JobState.QUEUED, 0)

    with_client(settings, story)
