"""Backup, restore and rebuild: what was acknowledged is there again, whole, or the command says what is wrong."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import redis

from services.cli import restore as restoring
from services.cli.rebuild import adopt
from shared import keys
from shared.blobs.interface import Blobs
from shared.blobs.opening import open_blobs
from shared.errors import InvalidRequest
from shared.paths import Paths
from shared.record_files import RecordFiles
from shared.settings import Settings
from shared.store import entries
from shared.store.client import Client
from shared.store.schema import Schema
from tests.api_server import ROOT, ApiServer, wait_until, with_store
from tests.durable_scene import MODEL, populate, recorded, seen, server, stored, upload, valkey
from tests.object_store import ObjectStore, object_store

__all__ = ["object_store"]

KEYS = "/v1/organization/projects/proj_default/api_keys"


def selftune(*arguments: str | Path, redis_url: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.cli", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "SELFTUNE_REDIS_URL": redis_url},
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip


def told(done: subprocess.CompletedProcess[str], status: int = 0) -> str:
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


def test_backup_of_a_running_server_is_restored_as_it_was(tmp_path: Path) -> None:
    home, backup, new = tmp_path / "home", tmp_path / "backup", tmp_path / "new"
    with valkey() as url, server(home, url) as api:
        of = populate(api)
        before = seen(api, of["key"])
        told(selftune("backup", backup, "--data-dir", home, redis_url=url))
        after = seen(api, of["key"])
    assert before == after
    assert (backup / "data" / "admin.key").stat().st_mode & 0o777 == 0o600
    assert of["key"].encode() not in (backup / "records.jsonl").read_bytes()
    assert "whole" in told(selftune("backup", "--verify", backup))
    with valkey() as url:
        assert "left out" not in told(selftune("restore", backup, "--data-dir", new, redis_url=url))
        with server(new, url) as api:
            assert seen(api, of["key"]) == before
            with api.client() as http:
                upload(http, "later.jsonl")
                names = [file["filename"] for file in http.get("/v1/files").json()["data"]]
    assert names == ["later.jsonl", *(f"file {number}.jsonl" for number in (4, 3, 2, 1, 0))]


def test_restored_embedded_database_holds_every_record(tmp_path: Path) -> None:
    from services.cli.database import database_of

    home, backup, new = tmp_path / "home", tmp_path / "backup", tmp_path / "new"
    with valkey() as url, server(home, url) as api:
        populate(api)
        api.stop()
        expected = stored(url)
        told(selftune("backup", backup, "--link", "--data-dir", home, redis_url=url))
    told(selftune("restore", backup, "--data-dir", new))
    with database_of(Settings(data_dir=str(new)), Paths(new).valkey) as url:
        found = stored(url)
        with redis.Redis.from_url(url) as client:
            kept = client.config_get("appendonly")
    assert kept == {"appendonly": "yes"}
    left_out = {name for name in expected if keys.family(name) in entries.LEFT_OUT}
    assert found.keys() | left_out == expected.keys()
    with valkey() as url, redis.Redis.from_url(url) as client:
        assert client.dbsize() == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".new")] == []


def test_restore_fills_a_mounted_folder_whose_parent_takes_nothing(tmp_path: Path) -> None:
    home, backup, mounted = tmp_path / "home", tmp_path / "backup", tmp_path / "root" / "data"
    with valkey() as url, server(home, url) as api:
        of = populate(api)
        before = seen(api, of["key"])
        told(selftune("backup", backup, "--data-dir", home, redis_url=url))
    mounted.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "none", mounted], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        (mounted / "lost+found").mkdir()
        with valkey() as url:
            with redis.Redis.from_url(url) as client:
                client.set(keys.file("file-other"), "{}")
                assert "not empty" in told(selftune("restore", backup, "--data-dir", mounted, redis_url=url), status=2)
                assert [path.name for path in mounted.iterdir()] == ["lost+found"]
                client.flushall()
            told(selftune("restore", backup, "--data-dir", mounted, redis_url=url))
            assert not [path for path in mounted.iterdir() if path.name.startswith(".")]
            with server(mounted, url) as api:
                assert seen(api, of["key"]) == before
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_folder_that_is_there_is_filled_from_inside_or_stays_empty(tmp_path: Path) -> None:
    staged = restoring._stage(tmp_path)
    for name in ("files", "jobs", "records"):
        (staged / name).mkdir(parents=True)
    (tmp_path / "jobs").write_text("in the way of a folder")
    with pytest.raises(NotADirectoryError):
        restoring._reveal(staged, tmp_path)
    assert sorted(path.name for path in staged.iterdir()) == ["files", "jobs", "records"]
    (tmp_path / "jobs").unlink()
    restoring._reveal(staged, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files", "jobs", "records"]


class Bucket:
    """A part of a bucket, and the settings file of the hosts that use it."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self.config = folder / "bucket.toml"
        self.options = {"key_secret": "0" * 64, "internal_key": "k", **store.settings(folder.name)}
        self.config.write_text("".join(f'{name} = "{value}"\n' for name, value in self.options.items()))
        self._store, self._prefix = store, folder.name

    def populate(self, api: ApiServer) -> dict[str, str]:
        """Fill a server; its adapter goes where a trainer would have put it."""
        of = populate(api)
        [folder] = api.paths.adapters.glob("*/*")
        asyncio.run(self.blobs(api.paths).keep(folder))
        return of

    def blobs(self, paths: Paths) -> Blobs:
        return open_blobs(Settings(data_dir=str(paths.home), **self.options), paths)

    def names(self) -> list[str]:
        return [unquote(key.removeprefix(f"{self._prefix}/")) for key in self._store.keys(self._prefix)]


def _in_any_order(what: dict[str, Any]) -> dict[str, Any]:
    """Files of the same second are listed in any order: a bucket's clock has whole seconds."""
    files = what["/v1/files?limit=100"]["data"]
    return {**what, "/v1/files?limit=100": sorted(files, key=lambda file: str(file["id"]))}


def test_a_fresh_host_is_rebuilt_from_the_bucket_alone(object_store: ObjectStore, tmp_path: Path) -> None:
    bucket, home, new = Bucket(object_store, tmp_path), tmp_path / "home", tmp_path / "new"
    with valkey() as url:
        nothing = selftune("rebuild", "--data-dir", new, "--config", bucket.config, redis_url=url)
        assert "nothing says what the records are of" in told(nothing, status=2)
        with server(home, url, **bucket.options) as api:
            of = bucket.populate(api)
            with api.client() as http:
                assert http.delete("/v1/aliases/support-2").is_success
            before = seen(api, of["key"])
        assert not list(home.glob("records/*"))
        assert len([key for key in bucket.names() if key.startswith("records/job/=ftjob-")]) == 2
        shutil.rmtree(home)
        with redis.Redis.from_url(url) as client:
            client.flushall()
        out = told(selftune("rebuild", "--data-dir", new, "--config", bucket.config, redis_url=url))
        assert "job: 2 put back, 0 there already" in out and "file: 5 put back" in out and "left out" not in out
        again = told(selftune("rebuild", "--data-dir", new, "--config", bucket.config, redis_url=url))
        assert "job: 0 put back, 2 there already" in again
        with server(new, url, **bucket.options) as api:
            assert _in_any_order(seen(api, of["key"])) == _in_any_order(before)


def test_a_backup_beside_a_bucket_is_restored_beside_it(object_store: ObjectStore, tmp_path: Path) -> None:
    bucket, home, backup, new = Bucket(object_store, tmp_path), tmp_path / "home", tmp_path / "backup", tmp_path / "new"
    with valkey() as url, server(home, url, **bucket.options) as api:
        of = bucket.populate(api)
        before = seen(api, of["key"])
        out = told(selftune("backup", backup, "--data-dir", home, "--config", bucket.config, redis_url=url))
        assert f"files and models stay in {bucket.options['storage_url']}" in out
    assert {path.name for path in (backup / "data").iterdir()} == {"admin.key", "api.log", "bases", "folder.id"}
    assert "was made beside the bucket" in told(selftune("restore", backup, "--data-dir", new), status=2)
    options = ("--data-dir", new, "--config", bucket.config)
    with valkey() as url:
        assert "left out" not in told(selftune("restore", backup, *options, redis_url=url))
        with server(new, url, **bucket.options) as api:
            assert seen(api, of["key"]) == before
    shutil.rmtree(new)
    paths = Paths(new)
    blobs = bucket.blobs(paths)
    [adapter] = asyncio.run(blobs.folders(paths.adapters, depth=2))
    for folder in (adapter.folder, paths.file_folder(of["file"])):
        asyncio.run(blobs.remove(folder))
    with valkey() as url:
        out = told(selftune("restore", backup, *options, redis_url=url))
        assert f"left out: {of['file']}: its bytes are not in the bucket" in out
        assert f"left out: {MODEL}: its folder {paths.relative(adapter.folder)} is not in the bucket" in out
    shutil.rmtree(new)
    asyncio.run(RecordFiles(blobs).claim(Schema(id="another", version=1)))
    with valkey() as url:
        assert "the records of another database" in told(selftune("restore", backup, *options, redis_url=url), status=2)
    assert not new.exists()


def test_a_backup_of_a_folder_is_not_restored_into_a_bucket(tmp_path: Path) -> None:
    backup, config = tmp_path / "backup", tmp_path / "bucket.toml"
    config.write_text('storage_url = "s3://tuning/production"\n')
    with valkey() as url, server(tmp_path / "home", url):
        told(selftune("backup", backup, "--data-dir", tmp_path / "home", redis_url=url))
    refused = selftune("restore", backup, "--data-dir", tmp_path / "new", "--config", config)
    assert "storage_url is set (s3://tuning/production)" in told(refused, status=2)
    assert not (tmp_path / "new").exists()


def test_half_a_backup_and_a_changed_byte_are_refused(tmp_path: Path) -> None:
    home, backup = tmp_path / "home", tmp_path / "backup"
    with valkey() as url, server(home, url) as api:
        of = populate(api)
        told(selftune("backup", backup, "--data-dir", home, redis_url=url))
    assert "is not empty" in told(selftune("restore", backup, "--data-dir", home), status=2)
    content = backup / "data" / "files" / of["file"] / "content"
    whole = content.read_bytes()
    content.write_bytes(whole[:-1] + b"x")
    new = tmp_path / "new"
    for command in (("restore", backup, "--data-dir", new), ("backup", "--verify", backup)):
        assert f"{content} is not as it was written" in told(selftune(*command), status=2)
    content.unlink()
    assert "No such file" in told(selftune("restore", backup, "--data-dir", new), status=2)
    content.write_bytes(whole)
    (backup / "data" / "stray").touch()
    assert "stray does not belong" in told(selftune("restore", backup, "--data-dir", new), status=2)
    (backup / "data" / "stray").unlink()
    (backup / "backup.json").rename(backup / "elsewhere")
    assert "was not finished" in told(selftune("restore", backup, "--data-dir", new), status=2)
    assert not new.exists()
    (backup / "elsewhere").rename(backup / "backup.json")
    with valkey() as url, redis.Redis.from_url(url) as client:
        client.set(keys.file("file-other"), "{}")
        assert "not empty" in told(selftune("restore", backup, "--data-dir", new, redis_url=url), status=2)
    assert not new.exists()


def test_killed_backup_is_none_and_changes_nothing(tmp_path: Path) -> None:
    home, backup = tmp_path / "home", tmp_path / "backup"
    with valkey() as url, server(home, url) as api:
        of = populate(api)
        for number in range(1000):  # so many that it is killed before the last
            folder = home / "jobs" / "ftjob-done" / f"part {number}"
            folder.mkdir(parents=True)
            (folder / "weights").write_bytes(os.urandom(40_000))
        before = seen(api, of["key"])
        running = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "backup", str(backup), "--data-dir", str(home)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "SELFTUNE_REDIS_URL": url},
        )
        wait_until(lambda: len(list(backup.glob("data/jobs/*/*"))) > 5)
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        assert "was not finished" in told(selftune("restore", backup, "--data-dir", tmp_path / "new"), status=2)
        assert "is not empty" in told(selftune("backup", backup, "--data-dir", home, redis_url=url), status=2)
        assert seen(api, of["key"]) == before
        told(selftune("backup", tmp_path / "second", "--data-dir", home, redis_url=url))
    assert "whole" in told(selftune("backup", "--verify", tmp_path / "second"))


def test_registry_is_rebuilt_from_the_folder_alone_and_twice_the_same(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with valkey() as url:
        with server(home, url) as api:
            of = populate(api)
            with api.client() as http:
                for path in ("/v1/aliases/support-2", f"/v1/files/{upload(http, 'gone.jsonl')}"):
                    assert http.delete(path).is_success
            before = seen(api, of["key"])
        database = stored(url)
        with redis.Redis.from_url(url) as client:
            client.flushall()
        first = told(selftune("rebuild", "--data-dir", home, redis_url=url))
        assert "job: 2 put back, 0 there already" in first
        assert "file: 5 put back" in first
        rebuilt = stored(url)
        second = told(selftune("rebuild", "--data-dir", home, redis_url=url))
        assert "job: 0 put back, 2 there already" in second
        assert stored(url) == rebuilt
        lost = entries.LEFT_OUT | {"completion", "completions", "answers", "audit", "audit_pending"}
        assert set(database) - set(rebuilt) - {"selftune:sequence"} <= {
            name for name in database if keys.family(name) in lost
        }
        with server(home, url) as api:
            after = seen(api, of["key"])
            with redis.Redis.from_url(url) as client:
                assert client.smembers(keys.ACTIVE_JOBS) == {b"ftjob-waits"}
                assert client.smembers(keys.PINNED_ADAPTERS) == {MODEL.encode()}
    assert after == before


def test_what_is_incomplete_is_left_out_and_named(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with valkey() as url:
        with server(home, url) as api:
            of = populate(api)
        paths = Paths(home)
        paths.file_content(of["file"]).write_bytes(b"short")
        [weights] = paths.adapters.glob("*/*/adapter_model.safetensors")
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        [alias] = paths.records.glob("alias/*support.json")
        alias.write_bytes(alias.read_bytes()[:50])
        marked = paths.files / "file-marked"
        shutil.copytree(paths.files / of["file"], marked)
        paths.unrecorded_mark("file-marked").touch()
        with redis.Redis.from_url(url) as client:
            client.flushall()
        out = told(selftune("rebuild", "--data-dir", home, redis_url=url))
        with redis.Redis.from_url(url) as client:
            assert not client.exists(keys.file("file-marked"), keys.file(of["file"]), keys.adapter(MODEL))
    assert f"left out: {of['file']}: its manifest does not fit its 5 bytes" in out
    assert re.search(f"left out: {re.escape(MODEL)}: its files in .* are not those that it was made of", out)
    assert f"left out: {alias}: it is no whole record" in out
    assert "file: 4 put back" in out


def test_records_survive_a_database_that_was_emptied_under_a_running_server(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with valkey() as url:
        with server(home, url) as api:
            populate(api)
            wait_until(lambda: recorded(api.paths, "ftjob-done"))
            time.sleep(1)
            before = {path: path.read_bytes() for path in api.paths.records.glob("*/*.json")}
            with redis.Redis.from_url(url) as client:
                client.flushall()
            with api.client() as http:
                wait_until(lambda: "another database" in http.get("/readyz").json()["redis"]["reason"])
        with server(home, url) as api, api.client() as http:  # a new start gives the empty database another identity
            wait_until(lambda: "another database" in http.get("/readyz").json()["redis"]["reason"])
            with redis.Redis.from_url(url) as client:
                assert client.hget(keys.SCHEMA, "id") is not None
        assert {path: path.read_bytes() for path in home.glob("records/*/*.json")} == before
        assert "job: 2 put back" in told(selftune("rebuild", "--data-dir", home, redis_url=url))


def test_revoked_and_replaced_keys_do_not_come_back(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with valkey() as url:
        with server(home, url) as api, api.client() as http:
            made = [http.post(KEYS, json={"name": name}).json() for name in ("kept", "revoked", "replaced")]
            wait_until(lambda: len([*api.paths.records.glob("api_key/*.json")]) == 4)
            saved = tmp_path / "saved"
            shutil.copytree(api.paths.records / "api_key", saved)
            assert http.delete(f"{KEYS}/{made[1]['id']}").is_success
            new = http.post(f"{KEYS}/{made[2]['id']}/rotate", json={}).json()["value"]
        # what a recorder leaves that dies before it removes the records of the values of before
        shutil.copytree(saved, Paths(home).records / "api_key", dirs_exist_ok=True)
        with redis.Redis.from_url(url) as client:
            client.flushall()
        out = told(selftune("rebuild", "--data-dir", home, redis_url=url))
        assert out.count("it was replaced or revoked") == 2
        with server(home, url) as api:
            statuses = {**{one["value"]: 401 for one in made[1:]}, made[0]["value"]: 200, new: 200}
            for value, status in statuses.items():
                with api.client(value) as http:
                    assert http.get("/v1/models").status_code == status


def test_rebuild_does_not_mix_two_folders(tmp_path: Path) -> None:
    with valkey() as url:
        with server(tmp_path / "one", url) as api, api.client() as http:
            upload(http, "one.jsonl")
        with valkey() as other, server(tmp_path / "two", other):
            pass
        refused = told(selftune("rebuild", "--data-dir", tmp_path / "two", redis_url=url), status=2)
        assert "records that are not of this data folder" in refused


@pytest.mark.parametrize("key", [keys.eval_("e"), keys.eval_run("r"), keys.response("a")])
def test_a_database_with_evals_or_responses_is_in_use(redis_url: str, key: str) -> None:
    async def story(client: Client) -> None:
        await client.call("HSET", key, "record", "{}")
        with pytest.raises(InvalidRequest, match="not of this data folder"):
            await adopt(client, Schema(id="another", version=1))

    with_store(redis_url, story)


def test_changes_are_written_down_and_deletions_follow(tmp_path: Path) -> None:
    with valkey() as url, server(tmp_path / "home", url) as api, api.client() as http:
        populate(api)
        names: list[dict[str, Any]] = []

        def target() -> str | None:
            found = list(api.paths.records.glob("alias/*support.json"))
            names[:] = [json.loads(path.read_bytes()) for path in found]
            return json.loads(names[0]["values"][0]["rows"][0][0])["target"] if names else None

        wait_until(lambda: target() == "org/tiny-base")
        assert http.post("/v1/aliases/support", json={"model": MODEL, "wait_warm": False}).is_success
        wait_until(lambda: target() == MODEL)
        [job] = api.paths.records.glob("job/*ftjob-done.json")
        [story] = [value for value in json.loads(job.read_bytes())["values"] if value["type"] == "stream"]
        assert len(story["rows"]) == 602
        assert job.stat().st_mode & 0o777 == 0o600
        assert http.delete("/v1/aliases/support").is_success
        wait_until(lambda: target() is None)
        assert not [path for path in api.paths.records.iterdir() if path.name.startswith("audit")]


def test_every_family_of_keys_is_kept_on_purpose() -> None:
    assert keys.__doc__ is not None
    table = {line.split(":")[1].split(" ")[0] for line in keys.__doc__.splitlines() if line.startswith("| selftune:")}
    alone = {"bases", "retired_adapters", "sequence", "adapter_numbers", "turns"}
    alone |= {"key_check", "built_in_keys"}
    assert table == entries.KINDS.keys() | entries._LISTED | entries.LEFT_OUT | alone


@pytest.mark.parametrize("folder", ["", "nothing-here"])
def test_rebuild_needs_a_data_folder(tmp_path: Path, folder: str) -> None:
    assert "is no data folder" in told(selftune("rebuild", "--data-dir", tmp_path / folder), status=2)
