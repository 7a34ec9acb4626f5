"""Batches while api processes stop, are killed, come back and work side by side."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from msgspec import Raw
from openai.types import Batch

from services.api.batches.output_files import OutputFiles
from services.api.batches.results import Result, Results
from services.api.leftovers import Leftovers
from shared import keys
from shared.batch_records import BatchRecord
from shared.batch_states import BatchState
from shared.blobs.local import LocalBlobs
from shared.paths import Paths
from shared.record_files import RecordFiles
from shared.store.batches import BatchStore
from shared.store.client import Client
from shared.store.files import FileStore
from shared.store.schema import create_schema
from tests.api_server import ApiServer, know_key, wait_until, with_store
from tests.batch_requests import CHAT, Model, completed, content, ended, line, sdk_of, serve, start, until
from tests.conftest import start_valkey
from tests.webhook_receiver import receiver

Launch = Callable[[], ApiServer]
MANY = 80


def under_way(batch: Batch) -> bool:
    return 8 <= completed(batch) < MANY - 8


@pytest.fixture
def url(valkey_folder: Path) -> str:
    """URL of an empty database that the API process of other tests does not look into."""
    url = f"unix://{valkey_folder / 'valkey.sock'}?db=2"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def upstream(url: str) -> Iterator[Model]:
    with Model(delay_s=0.3) as server:
        serve(url, server)
        yield server


@pytest.fixture
def launch(url: str, tmp_path: Path, upstream: Model) -> Iterator[Launch]:
    """Start API processes on one data folder."""
    with ExitStack() as stack:

        def start_one() -> ApiServer:
            server = ApiServer(
                tmp_path / "home", url, lease_ttl_s=2, webhook_allow_private=True, webhook_retry_base_s=0.05
            )
            stack.callback(server.stop)
            know_key(url, server.key)
            return server

        yield start_one


def kill(server: ApiServer) -> None:
    server.process.kill()
    server.process.wait()


def test_killed_process_loses_nothing_and_doubles_nothing(launch: Launch, upstream: Model) -> None:
    first = launch()
    made = start(sdk_of(first), [line(n) for n in range(MANY)])
    until(sdk_of(first), made, under_way)
    kill(first)
    answered = upstream.asked()
    sdk = sdk_of(launch())
    done = ended(sdk, made)
    assert (done.status, completed(done)) == ("completed", MANY)
    lines = content(sdk, done.output_file_id)
    assert [one["custom_id"] for one in lines] == [f"r{n}" for n in range(MANY)]
    assert len({one["id"] for one in lines}) == MANY
    assert done.usage is not None and done.usage.total_tokens == 5 * MANY
    again = upstream.asked() - Counter(f"prompt {n}" for n in range(MANY))
    assert again.total() <= 8, "only what was under way is asked again"
    assert again.keys() <= answered.keys()
    assert sorted(one.id for one in sdk.files.list(purpose="batch_output")) == [done.output_file_id]


def test_stopping_process_gives_its_batch_back_at_once(launch: Launch, url: str) -> None:
    first = launch()
    made = start(sdk_of(first), [line(n) for n in range(MANY)])
    until(sdk_of(first), made, under_way)
    assert first.stop() == 0
    with redis.Redis.from_url(url) as client:
        assert not client.exists(keys.batch_lease(made.id))
    done = ended(sdk_of(launch()), made)
    assert (done.status, completed(done)) == ("completed", MANY)


def test_silent_process_is_replaced_and_spoils_nothing_when_it_wakes(launch: Launch, upstream: Model) -> None:
    first = launch()
    made = start(sdk_of(first), [line(n) for n in range(MANY)])
    until(sdk_of(first), made, under_way)
    second = launch()
    assert upstream.most_at_once <= 8, "two processes work on it"
    first.process.send_signal(signal.SIGSTOP)
    try:
        until(sdk_of(second), made, lambda found: completed(found) >= MANY // 2)
    finally:
        first.process.send_signal(signal.SIGCONT)
    done = ended(sdk_of(second), made)
    assert (done.status, completed(done)) == ("completed", MANY)
    assert done.usage is not None and done.usage.total_tokens == 5 * MANY
    assert [one["custom_id"] for one in content(sdk_of(first), done.output_file_id)] == [f"r{n}" for n in range(MANY)]


def test_database_that_is_silent_for_a_while_costs_nothing(upstream: Model, tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="st-valkey-"))
    database = start_valkey(folder)
    url = f"unix://{folder / 'valkey.sock'}"
    try:
        serve(url, upstream)
        server = ApiServer(tmp_path / "home", url, lease_ttl_s=2)
        try:
            know_key(url, server.key)
            sdk = sdk_of(server)
            made = start(sdk, [line(n) for n in range(MANY)])
            until(sdk, made, under_way)
            database.send_signal(signal.SIGSTOP)
            time.sleep(3)  # longer than the lease
            database.send_signal(signal.SIGCONT)
            done = ended(sdk, made, timeout_s=60)
            assert (done.status, completed(done)) == ("completed", MANY)
            assert len(content(sdk, done.output_file_id)) == MANY
        finally:
            server.stop()
    finally:
        database.kill()
        database.wait()
        shutil.rmtree(folder, ignore_errors=True)


def stored(url: str, **changes: Any) -> BatchRecord:
    """Store a batch that no process has looked at, without its input."""
    fields: dict[str, Any] = {
        "id": "batch_x", "project": "proj_default", "endpoint": CHAT, "input_file_id": "file-x", "created_at": 1,
        "expires_at": 2**31, "planned_output": "file-output", "planned_error": "file-error",
    }  # fmt: skip
    record = BatchRecord(**{**fields, **changes})
    return with_store(url, lambda client: BatchStore(client).create(record))


def test_batch_that_was_cancelled_before_it_was_read_has_no_files(launch: Launch, url: str) -> None:
    made = stored(url, status=BatchState.CANCELLING, cancelling_at=1)
    done = ended(sdk_of(launch()), made)
    assert (done.status, done.output_file_id, done.error_file_id) == ("cancelled", None, None)


def test_batch_whose_input_is_gone_fails(launch: Launch, url: str) -> None:
    done = ended(sdk_of(launch()), stored(url))
    assert done.status == "failed" and done.errors is not None and done.errors.data is not None
    assert [one.code for one in done.errors.data] == ["input_file_missing"]


def test_folders_that_no_batch_needs_are_deleted(launch: Launch, url: str, tmp_path: Path) -> None:
    paths = Paths(tmp_path / "home")
    for name, age_s in (("batch_abandoned", 7200), ("batch_new", 10)):
        paths.batch_folder(name).mkdir(parents=True)
        os.utime(paths.batch_folder(name), (time.time() - age_s,) * 2)
    launch()
    wait_until(lambda: not paths.batch_folder("batch_abandoned").exists())
    assert paths.batch_folder("batch_new").exists()


def test_a_database_that_was_emptied_takes_no_folders_along(url: str, tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.prepare()
    folder = paths.batch_folder("batch_old")
    folder.mkdir(parents=True)
    os.utime(folder, (time.time() - 7200,) * 2)

    async def story(client: Client) -> None:
        blobs = LocalBlobs(paths)
        await client.call("DEL", keys.SCHEMA)
        former = await create_schema(client)
        await RecordFiles(blobs).claim(former)
        await client.call("DEL", keys.SCHEMA)
        await Leftovers(client, blobs, paths.batches).tidy(frozenset())
        assert folder.exists()
        await create_schema(client)
        await Leftovers(client, blobs, paths.batches).tidy(frozenset())
        assert folder.exists()
        await client.call("DEL", keys.SCHEMA)
        await create_schema(client, former)
        await Leftovers(client, blobs, paths.batches).tidy(frozenset())
        assert not folder.exists()

    with_store(url, story)


def test_files_are_published_once_however_often_it_is_tried(url: str, tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.prepare()
    record = stored(url, output_lifetime_s=3600)
    results = Results.load(paths.batch_results(record.id), "token")
    results.append([Result(number=n, failed=n == 1, line=Raw(b'{"custom_id":"%d"}' % n)) for n in (2, 1, 0)])

    async def publish_twice(client: Client) -> tuple[object, object, int]:
        files = FileStore(client)
        output = OutputFiles(files, LocalBlobs(paths))
        first = await output.publish(record, results)
        await client.call("DEL", keys.file("file-error"))  # as if the process had died before it recorded this one
        second = await OutputFiles(files, LocalBlobs(paths)).publish(record, results)
        return first, second, len((await files.list("proj_default", after=None, limit=10))[0])

    published = ("file-output", "file-error")
    assert with_store(url, publish_twice) == (published, published, 2)
    assert paths.file_content("file-output").read_text() == '{"custom_id":"0"}\n{"custom_id":"2"}\n'
    assert paths.file_content("file-error").read_text() == '{"custom_id":"1"}\n'
    assert list(paths.partial.iterdir()) == []


def test_end_of_a_batch_is_told_once(launch: Launch) -> None:
    server = launch()
    with receiver() as target:
        sdk = sdk_of(server)
        sdk.post(
            "/webhook_endpoints",
            cast_to=object,
            body={"name": "n", "url": target.url, "event_types": ["batch.completed", "batch.failed"]},
        )
        done = ended(sdk, start(sdk, [line(0)]))
        failed = ended(sdk, start(sdk, ["nonsense"], endpoint=CHAT))
        wait_until(lambda: len(target.received) >= 2)
        events = [json.loads(one.body) for one in target.received]
    assert {(one["type"], one["data"]["id"], one["created_at"]) for one in events} == {
        ("batch.completed", done.id, done.completed_at), ("batch.failed", failed.id, failed.failed_at),
    }  # fmt: skip
    assert len(events) == 2
