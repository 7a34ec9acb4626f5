"""The order in which arq takes jobs, on a real Valkey."""

from __future__ import annotations

import asyncio
from typing import Any

from arq.worker import Worker, func
from msgspec.structs import replace

from shared import keys, queue
from shared.queue import Queue
from shared.records import JobRecord, Priority
from shared.schemas.methods import SupervisedHyperparameters
from shared.schemas.options import TrainingOptions
from shared.states import JobState
from shared.store.client import Client
from shared.store.jobs import JobStore


def a_job(name: str, priority: Priority | None, project: str) -> JobRecord:
    return JobRecord(
        id=f"ftjob-{name}", project=project, organization="o", created_at=1, model="base", training_file="file-1",
        seed=1, requested=SupervisedHyperparameters(), model_name=f"ft:base:o::{name}", status=JobState.QUEUED,
        options=TrainingOptions(priority=priority),
    )  # fmt: skip


async def _taken(redis_url: str) -> list[str]:
    """Work through the train queue, one job at a time; returns their ids in that order."""
    taken: list[str] = []

    async def work(_context: dict[Any, Any], job_id: str) -> None:
        taken.append(job_id.removeprefix("ftjob-"))

    pool = await queue.connect(redis_url)
    worker = Worker(
        functions=[func(work, name="train", keep_result=0)],  # type: ignore[arg-type]
        queue_name=queue.TRAIN_QUEUE, redis_pool=pool, max_jobs=1, burst=True, poll_delay=0.01, handle_signals=False,
        job_serializer=queue.serialize, job_deserializer=queue.deserialize,
    )  # fmt: skip
    await worker.async_run()
    await worker.close()
    return taken


def test_high_comes_before_normal_before_low_and_each_in_order_of_submission(redis_url: str) -> None:
    async def story() -> None:
        client, waiting = Client(redis_url), Queue(redis_url)
        jobs = JobStore(client)
        submitted = [
            a_job("low1", "low", "p"), a_job("normal1", None, "q"), a_job("high1", "high", "p"),
            a_job("low2", "low", "q"), a_job("normal2", "normal", "p"), a_job("high2", "high", "q"),
        ]  # fmt: skip
        for record in submitted:
            await jobs.create(record, [])
        for record in reversed(
            submitted
        ):  # a file that is read faster, a job that is queued again: no way to the front
            await waiting.put(record, order=await jobs.order(record))
            await waiting.put(record, order=await jobs.order(record))
        assert await _taken(redis_url) == ["high1", "high2", "normal1", "normal2", "low1", "low2"]
        await waiting.close()
        await client.close()

    asyncio.run(story())


def test_first_job_of_all_is_taken(redis_url: str) -> None:
    async def story() -> None:
        waiting = Queue(redis_url)
        await waiting.train("ftjob-x", priority="high", order=0)
        assert await _taken(redis_url) == ["x"]
        await waiting.close()

    asyncio.run(story())


async def _submit(client: Client, waiting: Queue, record: JobRecord) -> None:
    jobs = JobStore(client)
    await jobs.create(record, [])
    await waiting.put(record, order=await jobs.order(record))


async def _begin(client: Client, name: str) -> None:
    await JobStore(client).update(f"ftjob-{name}", lambda job: replace(job, status=JobState.RUNNING))


def test_a_project_with_a_hundred_jobs_does_not_hold_back_anothers_first(redis_url: str) -> None:
    async def story() -> None:
        client, waiting = Client(redis_url), Queue(redis_url)
        for number in range(100):
            await _submit(client, waiting, a_job(f"many{number}", None, "many"))
        for number in range(3):
            await _begin(client, f"many{number}")
            await queue.remove(await queue.connect(redis_url), "train", f"ftjob-many{number}")
        for name in ("few0", "few1"):
            await _submit(client, waiting, a_job(name, None, "few"))
        await _submit(client, waiting, a_job("third0", None, "third"))
        taken = await _taken(redis_url)
        assert taken[:6] == ["many3", "few0", "third0", "many4", "few1", "many5"]
        assert taken[6:] == [f"many{number}" for number in range(6, 100)]
        await waiting.close()
        await client.close()

    asyncio.run(story())


def test_validation_takes_the_same_turns(redis_url: str) -> None:
    async def story() -> None:
        client, waiting = Client(redis_url), Queue(redis_url)
        submitted = [("a0", "a", None), ("a1", "a", None), ("a2", "a", None), ("b0", "b", None), ("c0", "c", "high")]
        for name, project, priority in submitted:
            record = a_job(name, priority, project)  # type: ignore[arg-type]
            await _submit(client, waiting, replace(record, status=JobState.VALIDATING_FILES))
        found = await queue.messages(await queue.connect(redis_url), queue.VALIDATE_QUEUE)
        assert found == ["ftjob-c0", "ftjob-a0", "ftjob-b0", "ftjob-a1", "ftjob-a2"]
        await waiting.close()
        await client.close()

    asyncio.run(story())


def test_jobs_keep_their_turn_and_nobody_pays_for_jobs_that_are_over(redis_url: str) -> None:
    async def story() -> None:
        client, waiting = Client(redis_url), Queue(redis_url)
        jobs = JobStore(client)
        for number in range(9):
            await _submit(client, waiting, a_job(f"a{number}", None, "a"))
        first, last = [await jobs.order(await jobs.get(f"ftjob-a{number}")) for number in (0, 8)]
        assert last - first == 8000
        await _begin(client, "a0")
        await jobs.update("ftjob-a0", lambda job: replace(job, status=JobState.QUEUED))
        assert await jobs.order(await jobs.get("ftjob-a0")) == first
        for number in range(9):
            await jobs.finish(f"ftjob-a{number}", JobState.CANCELLED)
        for priority in ("low", None, "high"):  # whatever the priority of the job that ended last
            await _submit(client, waiting, a_job(f"x{priority}", priority, "a"))
        for priority in ("low", None, "high"):
            await jobs.finish(f"ftjob-x{priority}", JobState.CANCELLED)
        for each in ("low", "normal", "high"):
            assert not await client.call("HEXISTS", keys.turns(each), "last a")
        await _submit(client, waiting, a_job("b0", None, "b"))
        await _submit(client, waiting, a_job("a9", None, "a"))
        orders = [await jobs.order(await jobs.get(f"ftjob-{name}")) for name in ("b0", "a9")]
        assert orders[0] // 1000 == orders[1] // 1000 == first // 1000 + 1
        await waiting.close()
        await client.close()

    asyncio.run(story())


def test_whoever_is_behind_is_not_starved_by_those_who_come(redis_url: str) -> None:
    """A project's tenth job is begun after at most nine turns, however many projects keep submitting."""

    async def story() -> None:
        client, waiting = Client(redis_url), Queue(redis_url)
        pool = await queue.connect(redis_url)
        for number in range(10):
            await _submit(client, waiting, a_job(f"old{number}", None, "old"))
        for turn in range(60):
            await _submit(client, waiting, a_job(f"new{turn}", None, f"project{turn % 3}"))
            (job_id, *_) = await queue.messages(pool, queue.TRAIN_QUEUE)
            await _begin(client, job_id.removeprefix("ftjob-"))
            await queue.remove(pool, "train", job_id)
            if job_id == "ftjob-old9":
                break
        assert turn < 45
        await pool.aclose()
        await waiting.close()
        await client.close()

    asyncio.run(story())


def test_jobs_of_before_there_were_turns_come_first(redis_url: str) -> None:
    async def story() -> None:
        client, waiting = Client(redis_url), Queue(redis_url)
        jobs = JobStore(client)
        old = [a_job(f"old{number}", None, "a") for number in range(3)]
        for record in old:
            await jobs.create(record, [])
            await client.call("HDEL", keys.job(record.id), "turn")
        await client.call("DEL", keys.turns("normal"))
        await _submit(client, waiting, a_job("new", None, "b"))
        for record in old:
            await waiting.put(record, order=await jobs.order(record))
        assert await _taken(redis_url) == ["old0", "old1", "old2", "new"]
        await waiting.close()
        await client.close()

    asyncio.run(story())
