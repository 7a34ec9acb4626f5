"""The order in which arq takes jobs, on a real Valkey."""

from __future__ import annotations

import asyncio
from typing import Any

from arq.worker import Worker, func

from shared import queue
from shared.queue import Priority, Queue
from shared.records import JobRecord
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
