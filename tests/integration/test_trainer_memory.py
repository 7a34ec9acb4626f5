"""A job says what memory it needs, and only a trainer that has it takes it; the others say what it waits for."""

from __future__ import annotations

import signal
from pathlib import Path

from msgspec.structs import replace

from services.trainer.jobs.admission import admit, waiting_reason
from services.trainer.jobs.holding import holding
from services.trainer.memory.capacity import RESERVE_BYTES, available_bytes, usable_memory_bytes
from shared.records import JobRecord, WorkerRecord
from shared.schemas.graders import StringCheckGrader
from shared.schemas.methods import ReinforcementMethod
from shared.schemas.options import TrainingOptions
from shared.settings import Settings
from shared.states import JobState
from tests.api_server import make_replica
from tests.integration.inference_stack import BASE_ID
from tests.integration.trainer_stack import Client, TrainerProcess, with_client
from tests.unit.trainer.tiny import training_rows

SMALL = 100_000_000


def worker(name: str, memory_bytes: int | None, state: str = "idle") -> WorkerRecord:
    return WorkerRecord(id=name, state=state, memory_bytes=memory_bytes)  # type: ignore[arg-type]


def test_job_waits_for_a_trainer_that_is_large_enough_and_goes_to_it(settings: Settings, tmp_path: Path) -> None:
    small = TrainerProcess(replace(settings, trainer_memory_bytes=SMALL), tmp_path / "small.log")
    large = TrainerProcess(replace(settings, trainer_memory_bytes=SMALL * 100), tmp_path / "large.log")

    async def story(client: Client) -> None:
        job_id = await client.submit(await client.upload(training_rows(10)))

        async def waits() -> JobRecord | None:
            record = await client.stores.jobs.get(job_id)
            return record if record.waiting_reason else None

        record = await client.until(waits, "the job's waiting")
        assert record.status is JobState.QUEUED and record.attempts == 0
        assert record.estimated_memory_bytes == sum(record.memory_parts.values()) > SMALL
        shown = record.public().selftune
        assert shown.estimated_memory_bytes == record.estimated_memory_bytes
        assert shown.waiting_reason == (
            f"waits for a trainer with about {record.estimated_memory_bytes / 1e9:.1f} GB of memory; "
            "the largest one running has 0.1 GB"
        )
        large.start()
        ended = await client.ended(job_id)
        assert (ended.status, ended.waiting_reason, ended.attempts) == (JobState.SUCCEEDED, "", 1)
        told = await client.story(job_id)
        assert sum("waits for a trainer" in message for message in told) == 1
        assert any(message.startswith("Training is expected to need about ") for message in told)
        assert any("memory is ample" in message for message in told)

    small.start()
    try:
        with_client(settings, story)
    finally:
        for process in (small, large):
            if process.process is not None:
                process.signal(signal.SIGTERM)
            print(process.log.read_text() if process.log.exists() else "")  # noqa: T201 - shown for a test that failed


def test_owner_may_overrule_the_estimate(settings: Settings) -> None:
    async def story(client: Client) -> None:
        rows = await client.upload(training_rows(10))
        insisting = await client.submit(rows, options=TrainingOptions(memory_gb=0.05), estimated_memory_bytes=10**12)
        assert await admit(client.stores, insisting, SMALL)
        modest = await client.submit(rows, options=TrainingOptions(memory_gb=4.0), estimated_memory_bytes=10**6)
        assert not await admit(client.stores, modest, SMALL)
        async with holding(client.stores, modest) as lease:
            assert lease is not None and await admit(client.stores, modest, SMALL), "it is in other hands"
        unknown = await client.submit(rows)
        assert await admit(client.stores, unknown, SMALL)
        assert await admit(client.stores, modest, None)
        assert await admit(client.stores, "ftjob-gone", SMALL)

    with_client(settings, story)


def test_reinforcement_waits_in_the_queue_until_a_server_takes_its_models(settings: Settings) -> None:
    """It would keep its trainer from other jobs; one that runs may wait there."""
    grader = StringCheckGrader(name="n", input="{{sample.output_text}}", reference="x", operation="eq")

    async def story(client: Client) -> None:
        presence, jobs = client.stores.presence, client.stores.jobs
        job_id = await client.submit(
            await client.upload(training_rows(10)),
            method="reinforcement",
            reinforcement=ReinforcementMethod(grader=grader),
            status=JobState.QUEUED,
        )
        for other in ({"base": "another"}, {"merged": "ft:m"}, {"tasks": ("embed",)}):
            await presence.beat_replica(make_replica("http://127.0.0.1:1", **{"base": BASE_ID, **other}), ttl_s=60)
            assert not await admit(client.stores, job_id, None)
        shown = (await jobs.get(job_id)).public().selftune
        reason = f"waits for an inference server for '{BASE_ID}', to have its prompts answered"
        assert shown is not None and shown.waiting_reason == reason
        assert (await client.story(job_id))[1:] == [f"The job {reason}"]
        await jobs.update(job_id, lambda record: replace(record, status=JobState.RUNNING))
        assert await admit(client.stores, job_id, None)
        await jobs.update(job_id, lambda record: replace(record, status=JobState.QUEUED))
        await presence.beat_replica(make_replica("http://127.0.0.1:1", base=BASE_ID), ttl_s=60)
        assert await admit(client.stores, job_id, None)

    with_client(settings, story)


def test_reason_names_the_largest_trainer_or_those_at_work() -> None:
    asked = "waits for a trainer with about 3.0 GB of memory"
    assert waiting_reason(3 * 10**9, []) == f"{asked}; the largest one running has 0.0 GB"
    small = worker("a", 10**9)
    assert waiting_reason(3 * 10**9, [small]) == f"{asked}; the largest one running has 1.0 GB"
    busy = worker("b", 4 * 10**9, "training")
    assert waiting_reason(3 * 10**9, [small, busy]) == f"{asked}; those that have it are at work"
    assert waiting_reason(3 * 10**9, [small, worker("c", 4 * 10**9)]) == "", "it is about to take it"


def test_trainer_offers_what_its_operator_says_or_what_is_free() -> None:
    assert usable_memory_bytes(12) == 12
    free, offered = available_bytes(), usable_memory_bytes()
    assert free is not None and offered is not None
    assert abs(free - RESERVE_BYTES - offered) < 2e9
