"""What the metrics say of the database, and of a database or a port that cannot be had."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest
import structlog
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from services.api.state_metrics import StateMetrics
from shared import ids, keys, metrics
from shared.errors import StoreUnavailable
from shared.records import JobRecord, WorkerRecord
from shared.schemas.methods import SupervisedHyperparameters
from shared.schemas.options import TrainingOptions
from shared.states import JobState
from shared.store.client import Client
from shared.store.jobs import JobStore
from shared.store.leases import LeaseStore
from shared.store.overview import Overview, look
from shared.store.presence import Presence
from tests.api_server import make_replica


async def add(jobs: JobStore, status: JobState, *, age_s: int = 0, **changes: object) -> str:
    record = JobRecord(
        id=ids.new_job_id(), project="proj_default", organization="acme", created_at=int(time.time()) - age_s,
        model="b", training_file="file-x", seed=1, requested=SupervisedHyperparameters(), model_name="ft:b:acme::x",
    )  # fmt: skip
    await jobs.create(replace(record, status=status, **changes), [])
    return record.id


def test_the_overview_counts_jobs_leases_and_the_living(redis_url: str) -> None:
    async def story() -> Overview:
        client = Client(redis_url)
        jobs, presence, leases = JobStore(client), Presence(client), LeaseStore(client, ttl_s=20.0)
        await add(jobs, JobState.VALIDATING_FILES)
        await add(jobs, JobState.QUEUED, age_s=100, options=TrainingOptions(priority="high"))
        await add(jobs, JobState.QUEUED, age_s=900, started=True)
        held = await add(jobs, JobState.RUNNING)
        await add(jobs, JobState.RUNNING)
        await jobs.finish(await add(jobs, JobState.QUEUED), JobState.CANCELLED)
        await client.call("HSET", keys.job(await add(jobs, JobState.QUEUED)), "record", b"{unreadable")
        await leases.claim(held)
        await client.call("PEXPIRE", keys.job_lease(held), 13_000)
        await client.call("ZADD", keys.WEBHOOK_QUEUE, 1, "evt_1.wh_1")
        await presence.beat_worker(WorkerRecord(id="w", state="idle"))
        await presence.beat_replica(make_replica("http://x"))
        seen = await look(client, lease_ttl_s=20.0)
        await client.close()
        return seen

    seen = asyncio.run(story())
    assert seen.jobs == {"validating_files": 1, "queued": 2, "running": 2, "paused": 0}
    assert seen.queued == {"high": 1, "normal": 1, "low": 0}
    assert 100 <= seen.oldest_waiting_s < 130
    assert seen.without_lease == 1 and seen.lease_age_s == 20.0
    assert seen.batches == 0
    assert seen.webhooks_pending == 2  # a delivery, and the cancelled job's outcome
    assert [worker.id for worker in seen.workers] == ["w"] and [replica.id for replica in seen.replicas] == [
        "replica-1"
    ]


def test_a_lease_has_the_age_of_its_renewal(redis_url: str) -> None:
    async def story() -> Overview:
        client = Client(redis_url)
        job_id = await add(JobStore(client), JobState.RUNNING)
        await LeaseStore(client, ttl_s=20.0).claim(job_id)
        await client.call("PEXPIRE", keys.job_lease(job_id), 13_000)
        seen = await look(client, lease_ttl_s=20.0)
        await client.close()
        return seen

    seen = asyncio.run(story())
    assert seen.without_lease == 0 and 7.0 <= seen.lease_age_s < 9.0


def test_a_database_that_is_away_is_a_zero_and_no_error(tmp_path_factory: pytest.TempPathFactory) -> None:
    told: list[tuple[float, bool]] = []

    async def story() -> dict[str, float]:
        client = Client("unix:///nowhere.sock", watch=lambda seconds, answered: told.append((seconds, answered)))
        with pytest.raises(StoreUnavailable):
            await client.ping()
        registry = CollectorRegistry()
        registry.register(StateMetrics(client, tmp_path_factory.mktemp("home"), lease_ttl_s=15.0))
        found = await asyncio.to_thread(lambda: {m.name: m.samples[0].value for m in registry.collect()})
        await client.close()
        return found

    found = asyncio.run(story())
    assert (
        found["selftune_store_up"] == 0 and 0 < found["selftune_data_free_bytes"] <= found["selftune_data_size_bytes"]
    )
    assert set(found) == {"selftune_store_up", "selftune_data_free_bytes", "selftune_data_size_bytes"}
    assert told and not any(answered for _, answered in told)


def test_numbers_that_cannot_be_read_are_left_out_and_logged(redis_url: str, tmp_path: Path) -> None:
    async def story() -> dict[str, float]:
        client = Client(redis_url)
        await client.call("SET", keys.ACTIVE_JOBS, "no set")
        registry = CollectorRegistry()
        registry.register(StateMetrics(client, tmp_path, lease_ttl_s=15.0))
        found = await asyncio.to_thread(lambda: {m.name: m.samples[0].value for m in registry.collect()})
        await client.close()
        return found

    with structlog.testing.capture_logs() as lines:
        found = asyncio.run(story())
    assert found["selftune_store_up"] == 1 and "selftune_jobs" not in found and "selftune_data_free_bytes" in found
    assert [line["event"] for line in lines] == ["metrics.state_unreadable"]


def test_the_store_tells_of_its_calls_and_not_of_waits_for_news(redis_url: str) -> None:
    told: list[bool] = []

    async def story() -> None:
        client = Client(redis_url, watch=lambda _, answered: told.append(answered))
        await client.ping()
        await client.together([("GET", "a")])
        await client.call("XREAD", "BLOCK", 10, "STREAMS", keys.ADAPTER_CHANGES, "$")
        await client.close()

    asyncio.run(story())
    assert told == [True, True]


def test_a_port_that_is_taken_is_a_warning() -> None:
    with socket.socket() as taken, structlog.testing.capture_logs() as lines:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        metrics.serve(CollectorRegistry(), host="127.0.0.1", port=taken.getsockname()[1])
    assert [(line["event"], line["log_level"]) for line in lines] == [("metrics.not_served", "warning")]
