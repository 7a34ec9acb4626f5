"""Faults in the worker itself, on a real Valkey: the job ends with the reason, and nothing is told twice or never."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from services.trainer.jobs import attempt_record
from services.trainer.jobs.device_time import DeviceTime
from services.trainer.jobs.first_attempt import other_way
from services.trainer.jobs.job_folder import CheckpointNames
from services.trainer.jobs.publishing import Publication
from services.trainer.jobs.serving import Serving
from services.trainer.jobs.supervise import train_job
from services.trainer.jobs.validating import validate_job
from services.trainer.launch.launching import Launcher
from services.trainer.protocol import Started
from shared.errors import StoreUnavailable
from shared.settings import Settings
from shared.states import JobState
from tests.api_server import make_base
from tests.integration.trainer_stack import BASE_ID, Client, with_client
from tests.unit.trainer.tiny import make_spec, training_rows


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
    assert not await train_job(client.stores, serving, Launcher(client.stores.settings), job_id)
    await serving.close()


@pytest.mark.parametrize(
    "place",
    ["services.trainer.jobs.job_folder.write_atomic", "services.trainer.jobs.publishing.result_file_id"],
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
        monkeypatch.setattr("services.trainer.jobs.validating.tokenize_files", no_space)
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


def test_checkpoint_that_a_dead_worker_named_is_told_once(settings: Settings, tmp_path: Path) -> None:
    async def story(client: Client) -> None:
        stores = client.stores
        record = await stores.jobs.get(await client.submit(await client.upload(training_rows(12))))
        spec = make_spec(tmp_path / "base", tmp_path)
        folder = stores.paths.job_folder(record.id)
        folder.mkdir(parents=True)
        CheckpointNames(folder, record.model_name).of(2, final=False)  # and then the worker died
        serving = Serving(stores)
        token = await stores.leases.claim(record.id)
        assert token is not None
        for _ in range(2):
            await Publication(stores, serving, record, spec, token).announce(2)
        (folder / "checkpoints_told.json").unlink()  # it died after the event
        await Publication(stores, serving, record, spec, token).announce(2)
        await serving.close()
        told = await client.story(record.id)
        assert len([message for message in told if message.startswith("Checkpoint created at step 2")]) == 1

    with_client(settings, story)


def test_result_file_has_a_mark_until_its_record_is_there(settings: Settings, tmp_path: Path) -> None:
    async def story(client: Client) -> None:
        stores = client.stores
        record = await stores.jobs.get(await client.submit(await client.upload(training_rows(12))))
        stores.paths.job_folder(record.id).mkdir(parents=True)
        serving, add = Serving(stores), stores.files.add
        publication = Publication(stores, serving, record, make_spec(tmp_path / "base", tmp_path), "token")

        async def die(*_: object, **__: object) -> None:
            raise RuntimeError("killed")

        stores.files.add = die  # type: ignore[method-assign]
        with pytest.raises(RuntimeError):
            await publication._store_result()
        [mark] = stores.paths.unrecorded.iterdir()
        assert stores.paths.file_content(mark.name).is_file()
        stores.files.add = add  # type: ignore[method-assign]
        assert await publication._store_result() == mark.name
        assert not mark.exists()
        await serving.close()

    with_client(settings, story)


def test_job_is_handed_back_to_a_database_that_is_away_for_a_moment(settings: Settings) -> None:
    async def story(client: Client) -> None:
        jobs = client.stores.jobs
        job_id = await client.submit(await client.upload(training_rows(12)))
        await jobs.update(job_id, lambda record: replace(record, status=JobState.QUEUED))
        token = await client.stores.leases.claim(job_id)
        assert token is not None
        begun = await attempt_record.begin(client.stores, job_id, token)
        assert begun.attempts == 1
        device_time = DeviceTime(client.stores, Launcher(settings), begun)
        update, calls = jobs.update, iter(range(100))

        async def away_once(*arguments: object, **more: object) -> object:
            if next(calls) == 0:
                raise StoreUnavailable("Redis does not answer.")
            return await update(*arguments, **more)  # type: ignore[arg-type]

        jobs.update = away_once  # type: ignore[method-assign,assignment]
        await attempt_record.hand_back(client.stores, job_id, token, device_time)
        record = await jobs.get(job_id)
        assert (record.status, record.attempts) == (JobState.QUEUED, 0)
        assert record.device_seconds > 0

    with_client(settings, story)


def test_attempt_that_trains_another_way_than_the_first_is_noticed(tmp_path: Path) -> None:
    first = Started(device="cuda", dtype="bfloat16", n_examples=1, total_steps=4, resumed_from_step=0, startup_s=1.0)
    assert other_way(tmp_path, first) == ""
    assert other_way(tmp_path, replace(first, resumed_from_step=2)) == ""
    together = replace(first, resumed_from_step=2, n_processes=2)
    assert other_way(tmp_path, together) == (
        "cuda, bfloat16, the fast path, 2 processes instead of cuda, bfloat16, the fast path"
    )
    other = replace(first, resumed_from_step=2, device="cpu", dtype="float32", plain_because="no kernel")
    assert other_way(tmp_path, other) == "cpu, float32, the plain path instead of cuda, bfloat16, the fast path"
