"""Pausing and resuming on a real trainer: nothing is lost, nothing is done twice, and the worker is free meanwhile."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from msgspec.structs import replace

from services.trainer.jobs.reaper import reap
from services.trainer.jobs.validating import validate_job
from shared import queue
from shared.errors import TransitionRefused
from shared.records import DEFAULT_PROJECT, JobRecord, ReplicaRecord
from shared.schemas.methods import SupervisedHyperparameters
from shared.settings import Settings
from shared.states import JobState
from tests.api_server import make_base
from tests.integration.trainer_stack import BASE_ID, DEADLINE_S, LONG, Client, TrainerProcess, with_client
from tests.unit.trainer.tiny import training_rows

MANY = SupervisedHyperparameters(n_epochs=30, batch_size=2, learning_rate_multiplier=1.0)
COMPLETED = "The job has successfully completed"


async def losses(client: Client, job_id: str) -> list[float]:
    page, _ = await client.stores.jobs.events(job_id, limit=1000)
    return [told.data["train_loss"] for told in reversed(page) if told.type == "metrics"]


async def running(client: Client, job_id: str) -> None:
    """Wait for an attempt at the job."""

    async def check() -> bool:
        return (await client.stores.jobs.get(job_id)).status is JobState.RUNNING

    await client.until(check, "an attempt")


async def waiting(client: Client, queue_name: str) -> list[bytes]:
    """List what lies in a queue."""
    found: list[bytes] = await client.stores.client.call("ZRANGE", queue_name, 0, -1)
    return found


def test_paused_job_frees_the_worker_and_goes_on_with_the_same_losses(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        rows = await client.upload(training_rows(24))
        job_id = await client.submit(rows, MANY)
        await client.reached(job_id, 30)
        await client.pause(job_id)
        record = await client.released(job_id)
        assert (record.status, record.attempts, record.estimated_finish) == (JobState.PAUSED, 0, None)
        step = (await client.steps(job_id))[-1]
        points = client.stores.paths.job_folder(job_id) / "checkpoints"
        assert (points / f"step-{step:08d}").is_dir(), "the last step told is saved"

        unbroken = await client.submit(rows, MANY)
        assert (await client.ended(unbroken)).status is JobState.SUCCEEDED
        assert (await client.stores.jobs.get(job_id)).status is JobState.PAUSED

        await client.resume(job_id)
        record = await client.ended(job_id)
        assert (record.status, record.attempts) == (JobState.SUCCEEDED, 1)
        assert await client.steps(job_id) == list(range(1, 361)), "each step is told once"
        assert await losses(client, job_id) == await losses(client, unbroken)
        told = await client.story(job_id)
        assert told.count("Fine-tuning job started") == told.count("Fine-tuning job resumed") == 1
        assert f'"resumed_from_step":{step}' in lasting_trainer.log.read_text().replace('": ', '":')

    with_client(lasting_settings, story)


def test_resuming_a_job_that_is_still_being_put_down_is_not_lost(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        job_id = await client.submit(await client.upload(training_rows(24)), MANY)
        before = lasting_trainer.log.read_text().count("job.putting_down")
        for count in (1, 2, 3):
            await running(client, job_id)
            await client.reached(job_id, 5)
            await client.pause(job_id)
            if count > 1:  # else the worker sees the job queued, never paused

                async def is_saving(count: int = count) -> bool:
                    return lasting_trainer.log.read_text().count("job.putting_down") == before + count

                await client.until(is_saving, "the worker's look at the record")
            await client.resume(job_id)
        record = await client.ended(job_id)
        assert (record.status, record.attempts) == (JobState.SUCCEEDED, 1)
        assert await client.steps(job_id) == list(range(1, 361))
        assert (await client.story(job_id)).count("Fine-tuning job resumed") == 3

    with_client(lasting_settings, story)


def test_pauses_do_not_count_as_deaths(lasting_trainer: TrainerProcess, lasting_settings: Settings) -> None:
    async def story(client: Client) -> None:
        job_id = await client.submit(await client.upload(training_rows(40)), LONG)
        for _ in range(6):  # one more than the deaths after which a job is given up
            await running(client, job_id)
            await client.pause(job_id)
            assert (await client.released(job_id)).attempts == 0
            await client.resume(job_id)
        await client.reached(job_id, 1)
        assert (await client.stores.jobs.get(job_id)).error is None
        await client.control.cancel(job_id, project=DEFAULT_PROJECT)

    with_client(lasting_settings, story)


def test_paused_job_can_be_cancelled(lasting_trainer: TrainerProcess, lasting_settings: Settings) -> None:
    async def story(client: Client) -> None:
        job_id = await client.submit(await client.upload(training_rows(40)), LONG)
        await client.reached(job_id, 3)
        await client.pause(job_id)
        await client.released(job_id)
        await client.control.cancel(job_id, project=DEFAULT_PROJECT)
        with pytest.raises(TransitionRefused):
            await client.resume(job_id)
        assert not lasting_trainer.children()
        assert (await client.stores.jobs.get(job_id)).status is JobState.CANCELLED
        assert job_id not in await client.stores.jobs.active()

    with_client(lasting_settings, story)


@pytest.mark.parametrize(("number", "deaths"), [(signal.SIGKILL, 1), (signal.SIGTERM, 0)], ids=["killed", "stopped"])
def test_paused_job_survives_the_end_of_its_worker(
    lasting_trainer: TrainerProcess, lasting_settings: Settings, number: signal.Signals, deaths: int
) -> None:
    async def story(client: Client) -> None:
        job_id = await client.submit(await client.upload(training_rows(24)), MANY)
        await client.reached(job_id, 15)
        await client.pause(job_id)
        lasting_trainer.signal(number)
        record = await client.released(job_id)
        assert (record.status, record.attempts) == (JobState.PAUSED, deaths)
        lasting_trainer.start()

        async def idle() -> bool:
            return any(worker.state == "idle" for worker in await client.stores.presence.workers())

        await client.until(idle, "an idle trainer")
        pool = await queue.connect(lasting_settings.redis_url)
        await reap(client.stores, pool)
        await pool.aclose()
        assert (await client.stores.jobs.get(job_id)).status is JobState.PAUSED
        assert not await client.stores.leases.held(job_id)
        await client.resume(job_id)
        assert (await client.ended(job_id)).status is JobState.SUCCEEDED
        assert await client.steps(job_id) == list(range(1, 361))

    with_client(lasting_settings, story)


async def assert_whole(client: Client, job_id: str) -> None:
    """The job succeeded once, and its model is listed."""
    record = await client.ended(job_id)
    assert (record.status, record.error) == (JobState.SUCCEEDED, None)
    told = await client.story(job_id)
    assert told.count(COMPLETED) == told.count(f"New fine-tuned model created: {record.model_name}") == 1
    checkpoints = await client.stores.jobs.checkpoints(job_id)
    assert len({checkpoint.step_number for checkpoint in checkpoints}) == len(checkpoints)
    listed = await client.models_of(job_id)
    assert record.model_name in listed
    assert listed == {checkpoint.fine_tuned_model_checkpoint for checkpoint in checkpoints}


@pytest.mark.parametrize("step", [5, 6])
def test_job_paused_at_its_last_step_is_paused_or_has_succeeded(
    lasting_trainer: TrainerProcess, lasting_settings: Settings, step: int
) -> None:
    async def story(client: Client) -> None:
        job_id = await client.submit(await client.upload(training_rows(24)))

        async def reached() -> bool:
            return step in await client.steps(job_id)

        await client.until(reached, f"step {step}")
        try:
            await client.pause(job_id)
        except TransitionRefused:
            await assert_whole(client, job_id)
            return
        record = await client.released(job_id)
        assert (record.status, record.fine_tuned_model) == (JobState.PAUSED, None)
        assert COMPLETED not in await client.story(job_id)
        assert not await client.models_of(job_id)
        await client.resume(job_id)
        await assert_whole(client, job_id)

    with_client(lasting_settings, story)


def test_job_paused_while_its_model_is_awaited_takes_it_back_and_publishes_it_later(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        replica = ReplicaRecord(id="r1", url="http://127.0.0.1:9", base=BASE_ID, state="ready")
        await client.stores.presence.beat_replica(replica, ttl_s=DEADLINE_S)
        job_id = await client.submit(await client.upload(training_rows(12)))
        name = (await client.stores.jobs.get(job_id)).model_name

        async def published() -> bool:
            return await client.stores.registry.get(name) is not None

        await client.until(published, "the publication")
        await client.pause(job_id)
        assert (await client.released(job_id)).status is JobState.PAUSED
        assert await client.stores.registry.get(name) is None
        await client.stores.presence.forget_replica("r1")
        await client.resume(job_id)
        await assert_whole(client, job_id)

    with_client(lasting_settings, story)


@pytest.mark.parametrize("content", [None, b"no json\n" * 12], ids=["good file", "bad file"])
def test_job_paused_during_validation_is_validated_again(
    settings: Settings, tiny_base: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    async def story(client: Client) -> None:
        jobs = client.stores.jobs
        base = replace(make_base(BASE_ID), path=str(tiny_base), context_length=128)
        await client.stores.registry.put_base(base)
        job_id = await client.submit(await client.upload(content or training_rows(12)))
        update = jobs.update

        async def announce_and_be_paused(*arguments: object, **more: object) -> JobRecord:
            record = await update(*arguments, **more)  # type: ignore[arg-type]
            monkeypatch.setattr(jobs, "update", update)
            await client.pause(job_id)
            return record

        monkeypatch.setattr(jobs, "update", announce_and_be_paused)
        assert not await validate_job(client.stores, job_id)
        paused = await jobs.get(job_id)
        assert (paused.status, paused.error) == (JobState.PAUSED, None)
        assert await waiting(client, queue.TRAIN_QUEUE) == []

        assert (await client.resume(job_id)).status is JobState.VALIDATING_FILES
        await validate_job(client.stores, job_id)
        assert (await jobs.get(job_id)).status is (JobState.FAILED if content else JobState.QUEUED)
        assert len(await waiting(client, queue.TRAIN_QUEUE)) == (0 if content else 1)

    with_client(settings, story)


def test_job_cancelled_during_a_pause_of_its_validation_stays_cancelled(settings: Settings) -> None:
    async def story(client: Client) -> None:
        job_id = await client.submit(await client.upload(training_rows(12)))
        await client.pause(job_id)
        await client.control.cancel(job_id, project=DEFAULT_PROJECT)
        await validate_job(client.stores, job_id)
        assert (await client.stores.jobs.get(job_id)).status is JobState.CANCELLED

    with_client(settings, story)


def test_supervised_file_fails_a_dpo_job_with_what_it_needs(settings: Settings) -> None:
    async def story(client: Client) -> None:
        file_id = await client.upload(training_rows(12))
        job_id = await client.submit(file_id, method="dpo")
        await validate_job(client.stores, job_id)
        record = await client.stores.jobs.get(job_id)
        assert record.status is JobState.FAILED and record.error is not None
        assert (record.error.code, record.error.param) == ("invalid_training_file", "training_file")
        assert "line 1: a dpo job needs lines with 'input'" in record.error.message

    with_client(settings, story)
