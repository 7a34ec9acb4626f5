"""The database's form: which it is, and that what converts it is done once, whoever dies or comes at the same time."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from services.cli.doctor import examine
from shared import keys
from shared.blobs.local import LocalBlobs
from shared.errors import SchemaTooNew
from shared.paths import Paths
from shared.record_files import RecordFiles
from shared.settings import Settings
from shared.store.client import Client
from shared.store.schema import Schema, ensure_schema, newest_version, read_schema
from tests.api_server import ROOT, with_store
from tests.conftest import start_valkey

_MIGRATING = """
import asyncio, os, sys
from shared.settings import Settings
from shared.store.client import Client
from shared.store.schema import ensure_schema

ITEMS = 20

async def second(client, context):
    await client.call("INCR", "toy:begun 2")
    for number in range(ITEMS):
        if number == int(os.environ.get("DIE_AT", -1)):
            os.kill(os.getpid(), 9)
        await client.call("SET", f"toy:item {number}", f"{context.paths.home} {number}")
        await asyncio.sleep(0.005)
    await client.call("INCR", "toy:done 2")

async def third(client, context):
    await client.call("INCR", "toy:begun 3")
    assert await client.call("GET", f"toy:item {ITEMS - 1}") is not None
    await client.call("INCR", "toy:done 3")

async def main():
    settings = Settings.load()
    client = Client(settings.database_url)
    print((await ensure_schema(client, settings, steps={2: second, 3: third})).version)

asyncio.run(main())
"""


@pytest.fixture
def database(redis_url: str) -> Iterator[str]:
    """URL of an empty database that is empty again afterwards: no other test could use it in these forms."""
    yield redis_url
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()


def migrate(url: str, home: Path, **environ: str) -> subprocess.Popen[str]:
    settings = Settings(data_dir=str(home), redis_url=url)
    return subprocess.Popen(
        [sys.executable, "-c", _MIGRATING],
        env={**os.environ, "PYTHONPATH": str(ROOT), **settings.to_env(), **environ},
        stdout=subprocess.PIPE,
        text=True,
    )


def numbers(url: str) -> dict[str, int]:
    with redis.Redis.from_url(url) as client:
        names = [f"toy:{what} {step}" for what in ("begun", "done") for step in (2, 3)]
        return {name: int(client.get(name) or 0) for name in names}


def test_database_from_before_is_the_first_form_and_keeps_its_identity(database: str, tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path))

    async def use(client: Client) -> tuple[Schema, Schema, Schema | None]:
        await client.call("SET", keys.file("file-old"), "{}")
        first = await ensure_schema(client, settings, steps={})
        return first, await ensure_schema(client, settings, steps={}), await read_schema(client)

    first, again, stored = with_store(database, use)
    assert first.version == 1
    assert len(first.id) > 20
    assert first == again == stored
    with redis.Redis.from_url(database) as client:
        assert client.hget(keys.SCHEMA, "applied 1") is not None


def test_killed_migration_is_taken_up_where_it_has_to_begin(database: str, tmp_path: Path) -> None:
    killed = migrate(database, tmp_path, DIE_AT="7")
    assert killed.wait(timeout=60) == -9
    with redis.Redis.from_url(database) as client:
        assert client.hget(keys.SCHEMA, "version") == b"1"
        assert client.get("toy:item 6") is not None
        assert client.get("toy:item 7") is None
        client.delete(keys.SCHEMA_LOCK)  # as its time to live does after 30 seconds
    second = migrate(database, tmp_path)
    assert second.communicate(timeout=60)[0].split()[-1] == "3"
    assert numbers(database) == {"toy:begun 2": 2, "toy:begun 3": 1, "toy:done 2": 1, "toy:done 3": 1}
    with redis.Redis.from_url(database) as client:
        assert [client.get(f"toy:item {n}") for n in range(20)] == [f"{tmp_path} {n}".encode() for n in range(20)]
        assert {field.decode() for field in client.hkeys(keys.SCHEMA)} == {
            "id", "version", "applied 1", "applied 2", "applied 3",
        }  # fmt: skip


def test_of_processes_that_race_one_migrates_and_the_others_wait(database: str, tmp_path: Path) -> None:
    racing = [migrate(database, tmp_path) for _ in range(3)]
    assert [process.communicate(timeout=60)[0].split()[-1] for process in racing] == ["3", "3", "3"]
    assert numbers(database) == {"toy:begun 2": 1, "toy:begun 3": 1, "toy:done 2": 1, "toy:done 3": 1}
    with redis.Redis.from_url(database) as client:
        assert not client.exists(keys.SCHEMA_LOCK)


def test_step_that_lost_its_lock_does_not_count(database: str, tmp_path: Path) -> None:
    runs = []

    async def robbed(client: Client, _context: object) -> None:
        runs.append(1)
        if len(runs) == 1:
            await client.call("SET", keys.SCHEMA_LOCK, "somebody else", "PX", 300)

    settings = Settings(data_dir=str(tmp_path))
    schema = with_store(database, lambda client: ensure_schema(client, settings, steps={2: robbed}))
    assert schema.version == 2
    assert len(runs) == 2


@pytest.mark.parametrize("service", ["api", "trainer", "inference"])
def test_service_refuses_a_newer_database_in_a_sentence(database: str, tmp_path: Path, service: str) -> None:
    with redis.Redis.from_url(database) as client:
        client.hset(keys.SCHEMA, mapping={"id": "x" * 40, "version": newest_version() + 1})
    settings = Settings(data_dir=str(tmp_path), redis_url=database)
    with pytest.raises(SchemaTooNew):
        with_store(database, lambda client: ensure_schema(client, settings))
    ended = subprocess.run(
        [sys.executable, "-m", f"services.{service}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **settings.to_env()},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    newest = newest_version()
    last = f"{service}: The database has form {newest + 1}, and this version of selftune knows forms up to {newest}; "
    assert last in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr


def test_it_waits_for_a_database_that_is_away(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="st-valkey-"))
    settings = Settings(data_dir=str(tmp_path))

    async def wait_for_it() -> Schema:
        client = Client(f"unix://{folder / 'valkey.sock'}")
        waiting = asyncio.create_task(ensure_schema(client, settings))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        process = await asyncio.to_thread(start_valkey, folder)
        try:
            return await asyncio.wait_for(waiting, 20)
        finally:
            await client.close()
            process.terminate()
            process.wait(timeout=20)

    try:
        assert asyncio.run(wait_for_it()).version == newest_version()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_doctor_tells_the_form_and_what_the_database_would_lose(database: str, tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path), redis_url=database)

    def lines() -> list[tuple[str, str, str]]:
        sources = dict.fromkeys(Settings.__struct_fields__, "the default")
        places = next(found for section, found in examine(settings, sources) if section == "Places")
        return [(line.level, line.what, line.detail) for line in places if line.what in ("database", "records")]

    lost = "the database has no append-only file (appendonly no) and loses what was written when it stops"
    expected = [("ok", "database", "answers"), ("warning", "database", lost)]
    assert lines() == [*expected, ("ok", "records", "none yet")]
    with_store(database, lambda client: ensure_schema(client, settings))
    assert lines() == [*expected, ("ok", "records", f"form {newest_version()}")]
    asyncio.run(RecordFiles(LocalBlobs(Paths(tmp_path))).claim(Schema(id="another", version=1)))
    other = "the data folder's are of another database: see selftune rebuild"
    assert lines()[2:] == [("failed", "records", other), ("ok", "records", f"form {newest_version()}")]
    with redis.Redis.from_url(database) as client:
        client.hset(keys.SCHEMA, "version", newest_version() + 1)
    [(level, _, detail)] = lines()[3:]
    assert level == "failed"
    assert detail.startswith(f"The database has form {newest_version() + 1}")
