"""Deaths of the worker on a real Valkey: the job goes on from what is saved, once, and a poisoned one ends."""

from __future__ import annotations

import asyncio
import shutil
import signal
from pathlib import Path

import pytest
from msgspec.structs import replace

from services.trainer.failures import TrainingFailed
from services.trainer.jobs import attempt_record
from services.trainer.jobs.job_folder import prepare
from services.trainer.jobs.reaper import reap
from services.trainer.jobs.serving import Serving
from services.trainer.jobs.supervise import MAX_ATTEMPTS, train_job
from services.trainer.jobs.validating import MAX_VALIDATIONS, validate_job
from services.trainer.launch.launching import Launcher
from shared import queue
from shared.errors import StoreUnavailable
from shared.records import DEFAULT_PROJECT, AdapterRecord, JobRecord, ReplicaRecord
from shared.settings import Settings
from shared.states import JobState
from tests.api_server import make_base
from tests.integration.trainer_stack import BASE_ID, DEADLINE_S, SHORT, Client, TrainerProcess, with_client
from tests.unit.trainer.tiny import training_rows


async def said(client: Client, job_id: str) -> list[tuple[int, float]]:
    page, _ = await client.stores.jobs.events(job_id, limit=1000)
    return [(told.data["step"], told.data["train_loss"]) for told in reversed(page) if told.type == "metrics"]


async def result_files(client: Client) -> set[str]:
    files, _ = await client.stores.files.list(DEFAULT_PROJECT, after=None, limit=1000, purpose="fine-tune-results")
    return {file.id for file in files}


def test_worker_killed_before_the_first_resume_point_and_while_publishing_loses_nothing(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        before = await result_files(client)
        rows, held_out = await client.upload(training_rows(24)), await client.upload(training_rows(4))
        replica = ReplicaRecord(id="r1", url="http://127.0.0.1:9", base=BASE_ID, state="ready")
        await client.stores.presence.beat_replica(replica, ttl_s=DEADLINE_S)
        asked = replace(SHORT, batch_size=1)  # 24 steps before the first resume point
        job_id = await client.submit(rows, asked, held_out)
        await client.reached(job_id, 1)
        lasting_trainer.signal(signal.SIGKILL)
        lasting_trainer.start()
        name = (await client.stores.jobs.get(job_id)).model_name

        async def published() -> bool:
            return await client.stores.registry.get(name) is not None

        await client.until(published, "the publication")
        lasting_trainer.signal(signal.SIGKILL)
        await client.stores.presence.forget_replica("r1")
        lasting_trainer.start()
        record = await client.ended(job_id)
        assert (record.status, record.error) == (JobState.SUCCEEDED, None)
        unbroken = await client.submit(rows, asked, held_out)
        assert (await client.ended(unbroken)).status is JobState.SUCCEEDED
        assert await said(client, job_id) == await said(client, unbroken)
        told = await client.story(job_id)
        assert len([message for message in told if message.startswith("Before training")]) == 1
        made = await result_files(client) - before
        assert len(made) == 2 and record.result_files[0] in made

    with_client(lasting_settings, story)


def test_deaths_count_as_long_as_nothing_is_gained(settings: Settings) -> None:
    async def story(client: Client) -> None:
        jobs, paths = client.stores.jobs, client.stores.paths
        job_id = await client.submit(await client.upload(training_rows(12)))
        await jobs.update(job_id, lambda record: replace(record, status=JobState.QUEUED))
        token = await client.stores.leases.claim(job_id)
        assert token is not None

        async def begin() -> JobRecord:
            return await attempt_record.begin(client.stores, job_id, token)

        assert [(await begin()).attempts for _ in range(MAX_ATTEMPTS)] == [1, 2, 3, 4, 5]
        (paths.job_folder(job_id) / "checkpoints" / "step-00000007").mkdir(parents=True)
        record = await begin()
        assert (record.attempts, record.reached_step) == (1, 7)
        assert [(await begin()).attempts for _ in range(MAX_ATTEMPTS)] == [2, 3, 4, 5, 6]

    with_client(settings, story)


def test_job_that_kills_its_workers_at_the_same_place_is_given_up(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        job_id = await client.submit(await client.upload(training_rows(12)), attempts=MAX_ATTEMPTS)
        record = await client.ended(job_id)
        assert record.status is JobState.FAILED and record.error is not None
        assert "The trainer died 5 times while it worked on this job, after step 0" in record.error.message

    with_client(lasting_settings, story)


def test_base_with_other_weights_under_the_same_name_fails_a_resumed_job(
    settings: Settings, tiny_base: Path, tmp_path: Path
) -> None:
    async def story(client: Client) -> None:
        shutil.copytree(tiny_base, tmp_path / "base")
        base = replace(make_base(BASE_ID), path=str(tmp_path / "base"))
        await client.stores.registry.put_base(base)
        job_id = await client.submit(await client.upload(training_rows(12)))
        record = await client.stores.jobs.get(job_id)
        await prepare(client.stores, record)
        await prepare(client.stores, record)
        [weights] = (tmp_path / "base").glob("*.safetensors")
        content = bytearray(weights.read_bytes())
        content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
        weights.write_bytes(content)
        with pytest.raises(TrainingFailed, match="another one than when this job began") as caught:
            await prepare(client.stores, record)
        assert caught.value.code == "base_model_changed"

    with_client(settings, story)


def test_files_that_take_down_their_workers_are_given_up(settings: Settings, tiny_base: Path) -> None:
    async def story(client: Client) -> None:
        base = replace(make_base(BASE_ID), path=str(tiny_base), context_length=128)
        await client.stores.registry.put_base(base)
        file_id = await client.upload(training_rows(12))
        poisoned, paused = await client.submit(file_id), await client.submit(file_id)
        jobs = client.stores.jobs
        await jobs.update(poisoned, lambda record: replace(record, validations=MAX_VALIDATIONS))
        await validate_job(client.stores, poisoned)
        record = await jobs.get(poisoned)
        assert record.status is JobState.FAILED and record.error is not None
        assert "died 5 times while it read this job's files" in record.error.message

        await jobs.update(paused, lambda record: replace(record, validations=MAX_VALIDATIONS - 1))
        await validate_job(client.stores, paused)
        record = await jobs.get(paused)
        assert (record.status, record.validations) == (JobState.QUEUED, 0)

    with_client(settings, story)


def test_validation_that_was_paused_and_resumed_while_it_ended_is_taken_up_again_at_once(settings: Settings) -> None:
    async def story(client: Client) -> None:
        job_id = await client.submit(await client.upload(b"no json\n" * 12))
        update, calls = client.stores.jobs.update, iter(range(100))

        async def be_paused_and_resumed(*arguments: object, **more: object) -> JobRecord:
            if next(calls) == 1:  # the one that would fail it
                client.stores.jobs.update = update  # type: ignore[method-assign]
                await client.pause(job_id)
                try:
                    return await update(*arguments, **more)  # type: ignore[arg-type]
                finally:
                    await client.resume(job_id)
            return await update(*arguments, **more)  # type: ignore[arg-type]

        client.stores.jobs.update = be_paused_and_resumed  # type: ignore[method-assign]
        assert await validate_job(client.stores, job_id), "arq drops the message of a job that is in progress"
        assert not await validate_job(client.stores, job_id)
        assert (await client.stores.jobs.get(job_id)).status is JobState.FAILED

    with_client(settings, story)


def test_messages_that_a_dead_worker_had_in_hand_do_not_block_the_queue(settings: Settings) -> None:
    async def story(client: Client) -> None:
        pool = await queue.connect(settings.redis_url)
        jobs = client.stores.jobs
        file_id = await client.upload(training_rows(12))
        cancelled, waits = await client.submit(file_id), await client.submit(file_id)
        for job_id in (cancelled, waits):
            record = await jobs.update(job_id, lambda record: replace(record, status=JobState.QUEUED))
            await client.stores.enqueue(record)
            await pool.set(f"arq:in-progress:train:{job_id}", b"1")
        await client.control.cancel(cancelled, project=DEFAULT_PROJECT)
        assert len(await queue.messages(pool, queue.TRAIN_QUEUE)) == 2
        await reap(client.stores, pool)
        assert await queue.messages(pool, queue.TRAIN_QUEUE) == [waits]
        assert await queue.messages(pool, queue.VALIDATE_QUEUE) == [waits]
        left = sorted(key.decode() for key in await pool.keys("arq:*"))
        assert left == [f"arq:job:train:{waits}", f"arq:job:validate:{waits}"]
        await pool.aclose()

    with_client(settings, story)


def test_job_cancelled_while_it_concludes_leaves_no_model_and_no_checkpoint(
    settings: Settings, tiny_base: Path
) -> None:
    async def story(client: Client) -> None:
        stores = client.stores
        await stores.registry.put_base(replace(make_base(BASE_ID), path=str(tiny_base), context_length=128))
        job_id = await client.submit(await client.upload(training_rows(12)))
        await validate_job(stores, job_id)
        append = stores.jobs.append_checkpoint
        listed: list[AdapterRecord] = []

        async def append_and_be_cancelled(*arguments: object, **more: object) -> None:
            await append(*arguments, **more)  # type: ignore[arg-type]
            listed.extend(await stores.registry.listed(DEFAULT_PROJECT))
            await client.control.cancel(job_id, project=DEFAULT_PROJECT)

        stores.jobs.append_checkpoint = append_and_be_cancelled  # type: ignore[method-assign]
        serving = Serving(stores)
        assert not await train_job(stores, serving, Launcher(stores.settings), job_id)
        await serving.close()
        record = await stores.jobs.get(job_id)
        assert (record.status, record.fine_tuned_model) == (JobState.CANCELLED, None)
        assert listed, "a checkpoint was listed when the job was cancelled"
        assert await stores.registry.listed(DEFAULT_PROJECT) == []
        assert await stores.registry.get(record.model_name) is None
        assert await stores.jobs.checkpoints(job_id) == []

    with_client(settings, story)


def test_database_that_does_not_answer_is_away(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(client: Client) -> None:
        monkeypatch.setattr(queue, "TIMEOUT_S", 0.2)
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(queue.connect(f"redis://127.0.0.1:{port}"), 5)
        server.close()

    with_client(settings, story)
