"""Two workers and one job: a dead worker's job goes on elsewhere in time, and never are there two that train it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from services.trainer.jobs.publishing import withdraw
from shared.errors import LeaseLost
from shared.records import DEFAULT_PROJECT
from shared.schemas.methods import SupervisedHyperparameters
from shared.settings import Settings
from shared.states import JobState
from tests.integration.trainer_stack import Client, TrainerProcess, running_trainer, with_client
from tests.unit.trainer.tiny import training_rows

STEPS = SupervisedHyperparameters(n_epochs=40, batch_size=2, learning_rate_multiplier=1.0)
LAST_STEP = 40 * 12


@pytest.fixture
def two(
    lasting_trainer: TrainerProcess, other_trainer: TrainerProcess
) -> Iterator[tuple[TrainerProcess, TrainerProcess]]:
    if not other_trainer.is_running():
        other_trainer.start()
    yield lasting_trainer, other_trainer


@pytest.fixture(scope="module")
def other_trainer(lasting_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainerProcess]:
    """A second trainer on the database of the one that lasts."""
    with running_trainer(lasting_settings, tmp_path_factory.mktemp("other")) as process:
        yield process


async def owner(client: Client, workers: tuple[TrainerProcess, ...], job_id: str) -> TrainerProcess:
    """Return the worker whose log says that it trains the job."""

    async def started() -> TrainerProcess | None:
        return next((worker for worker in workers if trains(worker, job_id)), None)

    found = await client.until(started, "a training process")
    assert isinstance(found, TrainerProcess)
    return found


def trains(worker: TrainerProcess, job_id: str) -> bool:
    return any('"child.started"' in line and job_id in line for line in worker.log.read_text().splitlines())


async def are_idle(client: Client, two: tuple[TrainerProcess, TrainerProcess]) -> bool:
    found = {worker.id for worker in await client.stores.presence.workers() if worker.state == "idle"}
    return found >= {worker.id for worker in two}


async def under_way(
    client: Client, two: tuple[TrainerProcess, TrainerProcess], n_rows: int = 24
) -> tuple[str, TrainerProcess, TrainerProcess]:
    """Return a job that has made twenty steps, the worker that trains it, and the other one."""
    await client.until(lambda: are_idle(client, two), "two trainers that could take the job")
    job_id = await client.submit(await client.upload(training_rows(n_rows)), STEPS)
    first = await owner(client, two, job_id)
    other = next(worker for worker in two if worker is not first)
    await client.reached(job_id, 20)
    return job_id, first, other


def reported(folder: Path) -> int:
    """Count the steps that were written into a job's folder."""
    return len((folder / "metrics.jsonl").read_bytes().splitlines())


async def exactly_once(client: Client, job_id: str) -> None:
    assert (await client.ended(job_id)).status is JobState.SUCCEEDED
    assert await client.steps(job_id) == list(range(1, LAST_STEP + 1)), "each step is told once"


def test_job_of_a_killed_worker_runs_elsewhere_within_the_lease_and_ten_seconds(
    two: tuple[TrainerProcess, TrainerProcess], lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        job_id, first, other = await under_way(client, two)
        first.signal(signal.SIGKILL)
        died = time.monotonic()
        await owner(client, (other,), job_id)
        # of the lease, and two rounds of the reaper
        assert time.monotonic() - died < lasting_settings.lease_ttl_s + 10
        await exactly_once(client, job_id)

    with_client(lasting_settings, story)


def test_frozen_worker_s_process_waits_and_ends_when_another_worker_has_the_job(
    two: tuple[TrainerProcess, TrainerProcess], lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        job_id, first, other = await under_way(client, two, n_rows=2000)  # which no machine is done with meanwhile
        folder = client.stores.paths.job_folder(job_id)
        orphaned = [child for child in first.children() if "training.child" in " ".join(child.cmdline())]
        assert len(orphaned) == 1 and first.process is not None
        psutil.Process(first.process.pid).suspend()
        try:
            # The second worker is kept from claiming, so that the lease only runs out.
            psutil.Process(other.process.pid).suspend()  # type: ignore[union-attr]
            await asyncio.sleep(lasting_settings.lease_ttl_s + 1)
            waiting_at = reported(folder)
            await asyncio.sleep(2)
            assert reported(folder) == waiting_at, "it trains without a lease"
            psutil.Process(other.process.pid).resume()  # type: ignore[union-attr]
            await owner(client, (other,), job_id)
        finally:
            psutil.Process(first.process.pid).resume()
        _, alive = psutil.wait_procs(orphaned, timeout=5)
        assert not alive, "two train the job"
        await client.reached(job_id, waiting_at + 20)
        await client.control.cancel(job_id, project=DEFAULT_PROJECT)
        await client.released(job_id)
        lines = (folder / "metrics.jsonl").read_bytes().splitlines()
        made = [msgspec.json.decode(line)["step"] for line in lines]
        assert made == list(range(1, len(made) + 1)), "each step is made once"
        told = await client.steps(job_id)
        assert told == list(range(told[0], told[-1] + 1)) and told[-1] > waiting_at, "and told once"
        assert "lease.lost" in first.log.read_text()

    with_client(lasting_settings, story)


def test_replaced_worker_takes_nothing_back(settings: Settings) -> None:
    async def story(client: Client) -> None:
        stores = client.stores
        job_id = await client.submit(await client.upload(training_rows(12)))
        record = await stores.jobs.get(job_id)
        (stores.paths.job_folder(job_id)).mkdir(parents=True)
        token = await stores.leases.claim(job_id)
        assert token is not None
        await stores.leases.release(job_id, token)
        assert await stores.leases.claim(job_id)
        with pytest.raises(LeaseLost):
            await withdraw(stores, record, fence=token)

    with_client(settings, story)
