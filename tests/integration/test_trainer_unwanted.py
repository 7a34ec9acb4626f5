"""What nobody wants any more: work for jobs that were cancelled, and what ended jobs have left on disk."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from services.trainer.failures import TrainingFailed
from services.trainer.jobs.admission import needed_bytes
from services.trainer.jobs.leftovers import sweep
from services.trainer.jobs.options import offered_base
from services.trainer.jobs.wanting import VALIDATED, while_wanted
from services.trainer.protocol import SPEC_FILE, Exported, Metrics, TrainSpec, encoder
from services.trainer.stores import Stores
from services.trainer.training.history import History
from services.trainer.worker import _recount
from shared import keys
from shared.records import JobRecord
from shared.schemas.methods import SupervisedHyperparameters
from shared.schemas.options import TrainingOptions
from shared.settings import Settings
from shared.states import JobState
from shared.store.jobs import event
from tests.api_server import make_adapter, make_base
from tests.integration.trainer_stack import Client, with_client


async def job_in(client: Client, state: JobState) -> JobRecord:
    """Make a job that no worker knows of, and bring it into a state."""
    job_id = await client.submit("file-none")
    jobs = client.stores.jobs
    if state is JobState.SUCCEEDED or state is JobState.RUNNING:
        for step in (JobState.QUEUED, JobState.RUNNING):
            await jobs.update(job_id, lambda record, step=step: replace(record, status=step))  # type: ignore[misc]
    if state in (JobState.SUCCEEDED, JobState.CANCELLED, JobState.FAILED):
        await jobs.finish(job_id, state, events=[event("ended")])
    return await jobs.get(job_id)


def test_work_for_a_job_ends_when_its_owner_cancels_it(settings: Settings) -> None:
    async def story(client: Client) -> None:
        job = await job_in(client, JobState.VALIDATING_FILES)
        ended = asyncio.Event()

        async def endless() -> int:
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()
            return 1

        working = asyncio.create_task(while_wanted(client.stores, job.id, VALIDATED, endless()))
        await asyncio.sleep(0.2)
        assert not working.done()
        await client.stores.jobs.finish(job.id, JobState.CANCELLED, events=[event("cancelled")])
        assert await asyncio.wait_for(working, 5) is None and ended.is_set()
        assert await asyncio.wait_for(while_wanted(client.stores, "ftjob-gone", VALIDATED, endless()), 5) is None

    with_client(settings, story)


def test_work_for_a_wanted_job_gives_what_it_gives(settings: Settings) -> None:
    async def story(client: Client) -> None:
        job = await job_in(client, JobState.VALIDATING_FILES)

        async def three() -> int:
            return 3

        async def fail() -> int:
            raise TrainingFailed("no")

        assert await while_wanted(client.stores, job.id, VALIDATED, three()) == 3
        with pytest.raises(TrainingFailed, match="no"):
            await while_wanted(client.stores, job.id, VALIDATED, fail())

    with_client(settings, story)


def test_leftovers_of_ended_jobs_go_and_nothing_else(settings: Settings) -> None:
    async def story(client: Client) -> None:
        paths, registry = client.stores.paths, client.stores.registry
        kept: list[Path] = []
        gone: list[Path] = []
        for state in (JobState.SUCCEEDED, JobState.CANCELLED, JobState.FAILED, JobState.RUNNING):
            job = await job_in(client, state)
            points = paths.job_folder(job.id) / "checkpoints"
            half = paths.adapters / "base" / f".partial-{job.id}-0a1b2c3d"
            model = paths.whole_model_folder(job.id) / ("a" * 64)
            for folder in (points, half, model):
                folder.mkdir(parents=True)
            (kept if state in (JobState.FAILED, JobState.RUNNING) else gone).append(points)
            (kept if state is JobState.RUNNING else gone).append(half)
            (kept if state in (JobState.RUNNING, JobState.SUCCEEDED) else gone).append(model)
            if state is JobState.SUCCEEDED:
                record = make_adapter(job.model_name, base=job.model_name, job_id=job.id, whole=True, rank=0)
                await registry.publish(record)
        strange = paths.whole_model_folder("ftjob-of-another-database")
        doomed = paths.models / ".partial-0a1b2c3d"
        for folder in (strange, doomed):
            folder.mkdir()
        await sweep(client.stores)
        assert [folder for folder in (*kept, strange) if not folder.exists()] == []
        assert [folder for folder in (*gone, doomed) if folder.exists()] == []

    with_client(settings, story)


def spec_with(parent: Path) -> bytes:
    spec = TrainSpec(
        job_id="ftjob-x", base_id="base", base_folder="", base_fingerprint="", adapters_folder="", training_path="",
        n_epochs=1, batch_size=1, learning_rate_multiplier=1.0, seed=1, parent_sha256=parent.name,
    )  # fmt: skip
    return encoder.encode(spec)


def export_of(folder: Path) -> Exported:
    metrics = Metrics(
        step=1, total_steps=2, epoch=1, train_loss=1.0, train_mean_token_accuracy=0.5, tokens=1, tokens_per_s=1.0,
        learning_rate=1e-3, grad_norm=1.0,
    )  # fmt: skip
    return Exported(folder=str(folder), sha256=folder.name, metrics=metrics, final=False, trained_tokens=1)


def test_adapters_of_deleted_models_go_and_nothing_else(settings: Settings) -> None:
    async def story(client: Client) -> None:
        paths, registry = client.stores.paths, client.stores.registry
        digests = iter(f"{number:064x}" for number in range(1000))

        async def folder(*, retired: bool = True, named: bool = False, job_id: str = "", age_s: float = 7200) -> Path:
            """Publish an adapter of two names, take back what is not `named`, and let its files have an age."""
            place = paths.adapter_folder("base", next(digests))
            place.mkdir(parents=True)
            (place / "adapter_config.json").touch()
            if job_id:
                (place / "manifest.json").write_text(json.dumps({"job_id": job_id}))
            for name in (f"ft:base:acme:one:{place.name}", f"ft:other:acme:two:{place.name}"):
                await registry.publish(make_adapter(name, base=name.split(":")[1], sha256=place.name))
                if (retired and not named) or ":one:" in name:
                    await registry.retire(name)
            if not retired:
                await client.stores.client.call("ZREM", keys.RETIRED_ADAPTERS, place.name)
                await client.stores.client.call("DEL", keys.adapter(f"ft:other:acme:two:{place.name}"))
            os.utime(place, (time.time() - age_s,) * 2)
            return place

        done, running = [await job_in(client, state) for state in (JobState.FAILED, JobState.RUNNING)]
        gone = [await folder(), await folder(retired=False, job_id=done.id), await folder(job_id=done.id)]
        exported, parent = await folder(), await folder()
        kept = [
            exported, parent, await folder(named=True), await folder(age_s=60), await folder(retired=False),
            await folder(retired=False, job_id="ftjob-of-another-database"),
        ]  # fmt: skip
        of_job = paths.job_folder(running.id)
        of_job.mkdir(parents=True)
        (of_job / SPEC_FILE).write_bytes(spec_with(parent))
        History(of_job, paths.adapters).add_export(export_of(exported))
        just_retired = await folder()
        for place in (*gone, *kept):
            await client.stores.client.call("ZADD", keys.RETIRED_ADAPTERS, "XX", 1, place.name)
        halfway = await folder()
        halfway.rename(halfway.with_name(f".partial-{halfway.name}"))
        doomed = paths.adapters / "base" / ".partial-0a1b2c3d"
        doomed.mkdir()
        await sweep(client.stores)
        assert [place for place in (*kept, just_retired, halfway) if not place.is_dir()] == []
        assert [place for place in (*gone, doomed) if place.exists()] == []
        assert not set(await registry.retired()) & {place.name for place in gone}

    with_client(settings, story)


def test_adapter_that_is_published_while_it_is_looked_at_stays(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(client: Client) -> None:
        paths, stores = client.stores.paths, client.stores
        places = [paths.adapter_folder("base", digit * 64) for digit in "abc"]
        for place in places:
            place.mkdir(parents=True)
            os.utime(place, (0, 0))
            await stores.client.call("ZADD", keys.RETIRED_ADAPTERS, 1, place.name)
        looks = iter([set[str](), {places[0].name}])

        async def needed(_: Stores) -> set[str]:
            found = next(looks)
            if found:
                assert not any(place.exists() for place in places), "set aside"
                places[1].mkdir()  # published again, by somebody who did not find it
            return found

        monkeypatch.setattr("services.trainer.jobs.deleted_adapters._needed", needed)
        await sweep(stores)
        assert [place.exists() for place in places] == [True, True, False]
        assert [path.name for path in places[0].parent.iterdir() if path.name.startswith(".")] == []

    with_client(settings, story)


def test_whole_model_that_is_no_longer_shared_is_not_trained_on(settings: Settings) -> None:
    async def story(client: Client) -> None:
        registry = client.stores.registry
        job = await job_in(client, JobState.VALIDATING_FILES)
        name = "ft:base:acme::whole000"
        await registry.put_base(make_base(name, path="models/ftjob-x/f", origin="base"))
        await registry.publish(make_adapter(name, base=name, whole=True, project=job.project))
        found = await offered_base(client.stores, replace(job, model=name))
        assert found.path == str(client.stores.paths.home / "models/ftjob-x/f"), "wherever the data folder is now"
        with pytest.raises(TrainingFailed, match="not offered"):
            await offered_base(client.stores, replace(job, model=name, project="proj_stranger"))

    with_client(settings, story)


@pytest.mark.parametrize(
    ("batch_size", "options", "needed"),
    [
        (4, TrainingOptions(), 6 * 10**9),
        (1, TrainingOptions(), 3 * 10**9),
        (4, TrainingOptions(memory_gb=5), 5 * 10**9),
    ],
)
def test_job_needs_its_estimate_for_each_of_its_processes(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, options: TrainingOptions, needed: int
) -> None:
    monkeypatch.setattr("services.trainer.jobs.admission.trains_on_gpu", lambda: False)
    asked = SupervisedHyperparameters(n_epochs=1, batch_size=batch_size, learning_rate_multiplier=1.0)
    record = JobRecord(
        id="ftjob-x", project="p", organization="o", created_at=1, model="m", training_file="f", seed=1,
        requested=asked, resolved=asked, model_name="ft:m:o::x", estimated_memory_bytes=3 * 10**9, options=options,
    )  # fmt: skip
    assert needed_bytes(record, Settings(trainer_processes=2)) == needed


def test_jobs_that_arq_never_began_are_not_counted() -> None:
    async def story() -> None:
        running, done = asyncio.create_task(asyncio.sleep(60)), asyncio.create_task(asyncio.sleep(0))
        await done
        worker: Any = SimpleNamespace(max_jobs=2, job_counter=2, sem=None, tasks={"a": running, "b": done})
        await _recount(worker)
        assert worker.job_counter == 1
        await asyncio.wait_for(worker.sem.acquire(), 1)
        running.cancel()

    asyncio.run(story())
