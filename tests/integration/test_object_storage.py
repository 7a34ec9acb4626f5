"""Hosts that share nothing but Redis and an object store: real api processes, real trainers, a real S3 server."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
from msgspec.structs import replace

from services.api.files.sweeper import Sweeper
from services.api.files.uploads import Uploads
from services.trainer.jobs.leftovers import sweep
from services.trainer.jobs.mirror import Mirror, restore
from services.trainer.protocol import METRICS_FILE, Exported, Metrics
from services.trainer.training.history import History
from shared import keys
from shared.blobs.copies import drop_copies
from shared.blobs.opening import open_blobs
from shared.errors import AdapterRejected
from shared.paths import Paths
from shared.records import DEFAULT_PROJECT
from shared.rollout_records import ROLLOUTS_FOLDER, rollout_file
from shared.settings import Settings
from shared.states import JobState
from shared.store.audit import AuditStore
from shared.store.client import Client as RedisClient
from shared.store.files import FileStore
from shared.store.uploads import UploadStore
from tests.api_server import ApiServer, know_key, wait_until, with_store
from tests.batch_requests import Model, completed, content, ended, line, sdk_of, serve, start
from tests.integration.inference_stack import BASE_ID as AGENT_BASE
from tests.integration.inference_stack import make_adapter, make_base
from tests.integration.test_inference_agent import World, play, state
from tests.integration.trainer_stack import LONG, Client, running_trainer, with_client
from tests.object_store import ObjectStore, object_store, running_store
from tests.unit.trainer.tiny import training_rows

__all__ = ["object_store"]

MANY = 240
CONTENT = os.urandom(9_000_000)  # two pieces


class Hosts:
    """Two api processes with data folders of their own."""

    def __init__(self, store: ObjectStore, folder: Path, redis_url: str) -> None:
        self.prefix = folder.name
        self.store = store
        self.servers = [
            ApiServer(folder / name, redis_url, internal_key="k", **store.settings(self.prefix)) for name in "ab"
        ]
        for server in self.servers:
            know_key(redis_url, server.key)
        self.sdks = [
            openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) for server in self.servers
        ]

    def stored(self) -> list[str]:
        """List what is in the store but for the database's records."""
        found = [key.removeprefix(f"{self.prefix}/") for key in self.store.keys(self.prefix)]
        return [key for key in found if not key.startswith("records/")]

    def on_disk(self) -> list[str]:
        """List files of users on both hosts' disks."""
        names = ("files", "uploads", "batches", "fetching")
        folders = [getattr(server.paths, name) for server in self.servers for name in names]
        return [str(path) for folder in folders for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def redis_url(redis_url: str) -> str:
    """A database of these tests' own: the API that other tests share would take up its batches."""
    return f"{redis_url}?db=1"


@pytest.fixture
def hosts(object_store: ObjectStore, tmp_path: Path, redis_url: str) -> Iterator[Hosts]:
    made = Hosts(object_store, tmp_path, redis_url)
    yield made
    for server in made.servers:
        server.stop()


def test_a_file_sent_to_one_host_is_read_and_deleted_at_the_other(hosts: Hosts) -> None:
    one, other = hosts.sdks
    file = one.files.create(file=("a.jsonl", CONTENT), purpose="user_data")
    assert sorted(hosts.stored()) == [f"files/{file.id}/{name}" for name in (".whole.json", "content", "manifest.json")]
    assert hosts.on_disk() == []
    assert other.files.content(file.id).read() == CONTENT
    with hosts.servers[1].client() as client, client.stream("GET", f"/v1/files/{file.id}/content") as answer:
        assert answer.headers["content-length"] == str(len(CONTENT))
        next(answer.iter_raw())  # and go
    other.files.delete(file.id)
    assert hosts.stored() == [] and hosts.on_disk() == []
    with pytest.raises(openai.NotFoundError):
        one.files.content(file.id)


def test_parts_sent_to_two_hosts_are_put_together_by_either(hosts: Hosts) -> None:
    one, other = hosts.sdks
    upload = one.uploads.create(filename="a.jsonl", purpose="user_data", bytes=len(CONTENT), mime_type="text/plain")
    first = one.uploads.parts.create(upload.id, data=CONTENT[:5_000_000])
    second = other.uploads.parts.create(upload.id, data=CONTENT[5_000_000:])
    with pytest.raises(openai.BadRequestError):
        one.uploads.complete(upload.id, part_ids=[first.id, second.id], md5="0" * 32)
    digest = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    done = other.uploads.complete(upload.id, part_ids=[first.id, second.id], md5=digest)
    assert done.file is not None
    assert one.files.content(done.file.id).read() == CONTENT
    assert {key.split("/")[0] for key in hosts.stored()} == {"files"}
    assert ".unrecorded" not in str(hosts.stored()) and hosts.on_disk() == []


def test_a_batch_holds_its_input_in_the_store_and_leaves_only_its_files_there(hosts: Hosts) -> None:
    line = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "nobody"}}\n'
    file = hosts.sdks[0].files.create(file=("a.jsonl", line), purpose="batch")
    hosts.servers[1].stop()
    batch: Any = hosts.sdks[0].batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    hosts.sdks[0].files.delete(file.id)
    deadline = time.monotonic() + 60
    while batch.status != "completed":
        assert time.monotonic() < deadline, batch
        time.sleep(0.2)
        batch = hosts.sdks[0].batches.retrieve(batch.id)
    assert batch.request_counts.failed == 1
    assert b"model_not_found" in hosts.sdks[0].files.content(batch.error_file_id).read()
    assert sorted({key.split("/")[0] for key in hosts.stored()}) == ["files"]


def test_a_batch_goes_on_at_another_host_when_its_own_is_killed(
    object_store: ObjectStore, tmp_path: Path, redis_url: str
) -> None:
    options: dict[str, Any] = {"internal_key": "k", "lease_ttl_s": 2, **object_store.settings(tmp_path.name)}
    with Model(delay_s=0.3) as upstream, ExitStack() as stack:
        serve(redis_url, upstream)

        def host(name: str) -> ApiServer:
            server = ApiServer(tmp_path / name, redis_url, **options)
            stack.callback(server.stop)
            know_key(redis_url, server.key)
            return server

        first = host("first")
        made = start(sdk_of(first), [line(number) for number in range(MANY)])
        wait_until(lambda: "/results/" in str(object_store.keys(f"{tmp_path.name}/batches/")), timeout_s=30)
        first.process.kill()
        first.process.wait()
        answered = upstream.asked().total()
        sdk = sdk_of(host("second"))
        done = ended(sdk, made, timeout_s=60)
        assert (done.status, completed(done)) == ("completed", MANY)
        assert [one["custom_id"] for one in content(sdk, done.output_file_id)] == [f"r{n}" for n in range(MANY)]
        assert 40 < answered < MANY
        assert upstream.asked().total() < MANY + answered, "what the first host had answered counts"
        assert object_store.keys(f"{tmp_path.name}/batches/") == []


def test_without_the_store_requests_are_503_and_nothing_is_half_done(tmp_path: Path, redis_url: str) -> None:
    with running_store() as store:
        hosts = Hosts(store, tmp_path, redis_url)
        try:
            sdk = hosts.sdks[0]
            hosts.servers[1].stop()
            kept = sdk.files.create(file=("a.jsonl", b"{}"), purpose="user_data")
            store.stop()
            for call in (
                lambda: sdk.files.create(file=("b.jsonl", b"{}"), purpose="user_data"),
                lambda: sdk.files.content(kept.id),
                lambda: sdk.files.delete(kept.id),
            ):
                with pytest.raises(openai.InternalServerError) as caught:
                    call()
                assert (caught.value.status_code, caught.value.code) == (503, "storage_unavailable")
                assert caught.value.response.headers["retry-after"] == "1"
            assert [file.id for file in sdk.files.list()] == [kept.id]
            assert hosts.on_disk() == []
            with hosts.servers[0].client() as client:
                assert "object storage" in client.get("/readyz").json()["storage"]["reason"]
        finally:
            hosts.servers[0].stop()


def test_a_file_that_was_never_recorded_is_swept_by_any_host(
    object_store: ObjectStore, tmp_path: Path, redis_url: str
) -> None:
    paths = Paths(tmp_path)
    paths.prepare()
    blobs = open_blobs(Settings(data_dir=str(tmp_path), **object_store.settings(tmp_path.name)), paths)

    async def story(client: RedisClient) -> None:
        files = FileStore(client)
        for file_id in ("file-lost", "file-half"):
            draft = paths.partial / file_id
            draft.mkdir()
            (draft / "content").write_bytes(b"{}")
            await blobs.mark(paths.unrecorded_mark(file_id))
            await blobs.publish(draft, paths.file_folder(file_id))
        await blobs._bucket.delete([blobs._key(paths.file_folder("file-half") / ".whole.json")])  # type: ignore[attr-defined]
        storage = Uploads(files, blobs, max_file_bytes=1)
        sweeper = Sweeper(files, UploadStore(client), storage, blobs, AuditStore(client))
        await sweeper.sweep(time.time())
        assert len(object_store.keys(f"{tmp_path.name}/files/file-")) == 3
        await sweeper.sweep(time.time() + 3601)
        assert object_store.keys(tmp_path.name) == []

    with_store(redis_url, story)


async def _uploaded(client: Client, rows: list[dict[str, Any]]) -> str:
    """Upload as an api host does: nothing stays on a trainer's disk."""
    file_id = await client.upload(rows)
    await client.stores.blobs.keep(client.stores.paths.file_folder(file_id))
    return file_id


def test_a_job_goes_on_at_another_host_as_if_nothing_had_happened(
    object_store: ObjectStore, settings: Settings, tmp_path: Path
) -> None:
    shared = replace(settings, internal_key="k", **object_store.settings("jobs"))
    api_host, first, second = (replace(shared, data_dir=str(tmp_path / name)) for name in ("api", "one", "two"))

    async def said(client: Client, job_id: str) -> list[tuple[int, float]]:
        page, _ = await client.stores.jobs.events(job_id, limit=1000)
        return [(told.data["step"], told.data["train_loss"]) for told in reversed(page) if told.type == "metrics"]

    async def story(client: Client) -> None:
        stores = client.stores
        rows = await _uploaded(client, training_rows(100))  # epochs long enough for their resume points to be put
        asked = replace(LONG, n_epochs=6)
        (tmp_path / "one").mkdir()
        with running_trainer(first, tmp_path / "one") as trainer:
            job_id = await client.submit(rows, asked)

            async def kept() -> bool:
                return bool(await stores.blobs.folders(stores.paths.job_folder(job_id) / "checkpoints", depth=1))

            await client.until(kept, "the first resume point in the store")
            await client.reached(job_id, 14)
            trainer.signal(signal.SIGKILL)
        before = len(await client.steps(job_id))
        assert (await stores.jobs.get(job_id)).status is JobState.RUNNING and before < 100 * 6
        (tmp_path / "two").mkdir()
        with running_trainer(second, tmp_path / "two"):
            record = await client.ended(job_id)
            assert (record.status, record.error) == (JobState.SUCCEEDED, None)
            unbroken = await client.submit(rows, asked)
            assert (await client.ended(unbroken)).status is JobState.SUCCEEDED
            await client.released(unbroken)
        assert await said(client, job_id) == await said(client, unbroken)
        names = (record.model_name, (await stores.jobs.get(unbroken)).model_name)
        models = [await stores.registry.get(name) for name in names]
        assert models[0] is not None and models[1] is not None and models[0].sha256 == models[1].sha256
        folder = stores.paths.home / models[0].folder
        assert not folder.exists()
        await stores.blobs.fetch(folder)
        assert {path.name for path in folder.iterdir()} >= {"adapter_config.json", "manifest.json", "README.md"}
        results, _ = await stores.files.list(DEFAULT_PROJECT, after=None, limit=9, purpose="fine-tune-results")
        assert len(results) == 2
        for result in results:
            assert await stores.blobs.exists(stores.paths.file_folder(result.id))
        assert [key for key in object_store.keys("jobs/jobs/") if "/checkpoints/" in key] == []

    with_client(api_host, story)


def test_an_export_that_is_gone_keeps_the_others_from_nothing(
    object_store: ObjectStore, settings: Settings, tmp_path: Path
) -> None:
    async def story(client: Client) -> None:
        stores = client.stores
        folder, adapters = stores.paths.job_folder("ftjob-1"), stores.paths.adapters / "base"
        folder.mkdir(parents=True)
        metrics = Metrics(
            step=1, total_steps=2, epoch=1, train_loss=1.0, train_mean_token_accuracy=0.5, tokens=1, tokens_per_s=1.0,
            learning_rate=1.0, grad_norm=1.0,
        )  # fmt: skip
        for digit in "ab":
            name = digit * 64
            exported = Exported(folder=name, sha256=name, metrics=metrics, final=False, trained_tokens=1)
            History(folder, adapters).add_export(exported)
        (adapters / ("b" * 64)).mkdir(parents=True)
        (adapters / ("b" * 64) / "adapter_config.json").touch()
        await Mirror(stores, folder, adapters, "token")._keep_exports()
        assert [kept.folder.name for kept in await stores.blobs.folders(stores.paths.adapters, depth=2)] == ["b" * 64]

    with_client(replace(settings, data_dir=str(tmp_path / "one"), **object_store.settings("exports")), story)


def test_rollouts_are_put_by_whoever_makes_them_and_fetched_once(
    object_store: ObjectStore, settings: Settings, tmp_path: Path
) -> None:
    """A job has gigabytes of them: neither each round of the mirror nor each attempt moves them all."""

    async def story(client: Client) -> None:
        stores = client.stores
        folder = stores.paths.job_folder("ftjob-1")
        made = {rollout_file(folder, step, validation=False): b"%d" % step for step in (1, 2, 3)}
        metrics = folder / METRICS_FILE
        (folder / ROLLOUTS_FOLDER).mkdir(parents=True)
        for file, written in {**made, metrics: b"of the store"}.items():
            file.write_bytes(written)
        await Mirror(stores, folder, stores.paths.adapters, "token")._keep_small()
        assert await stores.blobs.files(folder / ROLLOUTS_FOLDER) == {}
        for file in made:
            await stores.blobs.keep_file(file)
        same, longer, missing = made
        same.write_bytes(b"x")
        longer.write_bytes(b"xx")
        missing.unlink()
        metrics.write_bytes(b"of this host")
        await restore(stores, "ftjob-1")
        assert [file.read_bytes() for file in (same, longer, missing, metrics)] == [b"x", b"2", b"3", b"of the store"]

    with_client(replace(settings, data_dir=str(tmp_path / "one"), **object_store.settings("rollouts")), story)


def test_models_that_were_deleted_go_from_the_store_and_from_every_disk(
    object_store: ObjectStore, settings: Settings, tmp_path: Path
) -> None:
    shared = replace(settings, data_dir=str(tmp_path / "one"), **object_store.settings("sweeps"))
    other = replace(shared, data_dir=str(tmp_path / "two"))

    async def story(client: Client) -> None:
        stores = client.stores
        there = Paths(other.home)
        there.prepare()
        blobs = open_blobs(other, there)
        gone, kept = (stores.paths.adapter_folder("base", digit * 64) for digit in "ab")
        for folder in (gone, kept):
            draft = stores.paths.partial / "draft"
            draft.mkdir()
            (draft / "adapter_config.json").touch()
            await stores.blobs.publish(draft, folder)
            await blobs.fetch(there.home / stores.paths.relative(folder))
        await stores.client.call("ZADD", keys.RETIRED_ADAPTERS, 1, gone.name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("services.trainer.jobs.deleted_adapters.KEPT_S", -5.0)
            await sweep(stores)
        assert (await stores.blobs.exists(gone), await stores.blobs.exists(kept)) == (False, True)
        for folder in there.adapters.glob("*/*"):
            os.utime(folder, (0, 0))
        unstored = there.adapter_folder("base", "c" * 64)
        unstored.mkdir()
        (unstored / "manifest.json").write_text('{"job_id": "ftjob-1"}')
        whole = there.whole_model_folder("ftjob-1") / ("d" * 64)
        whole.mkdir(parents=True)
        for folder in (unstored, whole):
            os.utime(folder, (0, 0))
        await stores.client.call("SADD", keys.ACTIVE_JOBS, "ftjob-1")
        await drop_copies(blobs, stores.jobs.active)
        assert sorted(folder.name for folder in there.adapters.glob("*/*")) == [kept.name, unstored.name]
        assert whole.exists()
        await stores.client.call("SREM", keys.ACTIVE_JOBS, "ftjob-1")
        await drop_copies(blobs, stores.jobs.active)
        # What the store has neither given nor taken is no copy.
        assert sorted(folder.name for folder in there.adapters.glob("*/*")) == [kept.name, unstored.name]
        assert whole.exists()

    with_client(shared, story)


async def no_jobs() -> list[str]:
    return []


def test_originals_from_before_there_was_a_store_stay_until_it_has_them(
    object_store: ObjectStore, settings: Settings, tmp_path: Path
) -> None:
    paths = Paths(tmp_path / "grown")
    paths.prepare()
    folders = [paths.file_folder("file-old"), paths.adapter_folder("base", "a" * 64), paths.models / "ftjob-1" / "b"]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_bytes(b"{}")

    def age() -> None:
        for folder in folders:
            os.utime(folder, (0, 0))

    async def story() -> None:
        blobs = open_blobs(replace(settings, data_dir=str(paths.home), **object_store.settings("grown")), paths)
        age()
        await drop_copies(blobs, no_jobs)
        assert [folder.is_dir() for folder in folders] == [True] * 3
        for folder in folders:
            await blobs.keep(folder)
        folders[1].rename(tmp_path / "another")
        folders[1].mkdir()  # not the folder that the store has taken
        await drop_copies(blobs, no_jobs)
        for key in object_store.keys("grown/"):
            await blobs._bucket.delete([key.removeprefix("grown/")])  # type: ignore[attr-defined]
        age()
        await drop_copies(blobs, no_jobs)
        assert [folder.is_dir() for folder in folders] == [False, True, False]
        assert len(list(paths.copies.iterdir())) == 1

    asyncio.run(story())


def test_inference_fetches_an_adapter_by_its_hash(object_store: ObjectStore, tmp_path: Path, redis_url: str) -> None:
    home, maker = tmp_path / "inference", tmp_path / "trainer"
    for folder in (home, maker):
        Paths(folder).prepare()
    make_adapter(maker / "adapter", make_base(home / "base"), seed=1)
    options = object_store.settings("agent")

    async def story(made: World) -> None:
        there = open_blobs(Settings(data_dir=str(maker), **options), Paths(maker))
        made.loader._blobs = open_blobs(Settings(data_dir=str(home), **options), Paths(home))
        made._adapter = maker / "adapter"
        await made.publish("ft:a")
        await state(made, "ft:a", "failed")
        assert "No such file" in (await made.registry.residency("ft:a"))["replica-test"].reason
        await there.keep(maker / "adapter")
        await made.publish("ft:b")
        await state(made, "ft:b", "warm")
        assert {path.name for path in (home / "adapter").iterdir()} >= {"adapter_config.json"}
        with pytest.raises(AdapterRejected):
            await made.agent.acquire("ft:a")

    assert AGENT_BASE
    play(home.resolve(), redis_url, story)
