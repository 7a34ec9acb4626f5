"""Keys under a keyed hash: moved from plain ones, rotated with and without grace, refused at once by every process."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shared import ids, keys
from shared.errors import KeySecretMismatch, NotAuthenticated, StoreUnavailable
from shared.key_hash import KeyHash
from shared.paths import Paths
from shared.records import JobRecord, KeyRecord
from shared.schemas.methods import SupervisedHyperparameters
from shared.settings import Settings
from shared.store.api_keys import Identity, KeyStore
from shared.store.client import Client
from shared.store.jobs import JobStore, event
from shared.store.migrations import keyed_hashes
from shared.store.migrations.context import MigrationContext
from shared.store.presence import Presence
from shared.store.projects import ProjectStore
from shared.store.registry import Registry
from tests.api_server import BASE, KEY_SECRET, ROOT, ApiServer, make_base, make_replica, wait_until, with_store
from tests.fakes.upstream import Upstream

PROJECTS = "/v1/organization/projects"
KEYS = f"{PROJECTS}/proj_default/api_keys"


@dataclass
class Pair:
    """Two API processes on one database; the second has a data folder of its own."""

    first: ApiServer
    second: ApiServer

    def statuses(self, key: str) -> list[int]:
        """Return what each of them answers to a key."""
        found = []
        for server in (self.first, self.second):
            with server.client(key) as http:
                found.append(http.get("/v1/models").status_code)
        return found


@pytest.fixture
def pair(tmp_path: Path, redis_url: str) -> Iterator[Pair]:
    servers = [ApiServer(tmp_path / name, redis_url) for name in ("first", "second")]
    yield Pair(*servers)
    for server in servers:
        server.stop()


def made_key(server: ApiServer, **options: Any) -> tuple[str, str]:
    """Return id and value of a new key."""
    with server.client() as http:
        created = http.post(KEYS, json={"name": "of a team", "selftune": options}).raise_for_status().json()
    return created["id"], created["value"]


def test_a_rotated_key_is_the_same_key_with_another_value(pair: Pair) -> None:
    key_id, old = made_key(pair.first, scopes=["read"], limits={"requests_per_minute": 1000})
    assert pair.statuses(old) == [200, 200]
    with pair.first.client() as http:
        before = http.get(f"{KEYS}/{key_id}").json()
        rotated = http.post(f"{KEYS}/{key_id}/rotate", json={}).raise_for_status().json()
        after = http.get(f"{KEYS}/{key_id}").json()
        listed = [key["id"] for key in http.get(KEYS).json()["data"]]
    new = rotated.pop("value")
    assert rotated | {"last_used_at": None} == after | {"last_used_at": None}
    assert after == before | {"redacted_value": f"sk-selftune-...{new[-4:]}"}
    assert listed == [key_id]
    assert pair.statuses(old) == [401, 401]
    assert pair.statuses(new) == [200, 200]


def test_the_former_value_works_for_its_grace_and_no_longer(pair: Pair) -> None:
    key_id, first = made_key(pair.first)
    with pair.first.client() as http:
        second = http.post(f"{KEYS}/{key_id}/rotate", json={"grace_s": 3600}).json()["value"]
        assert pair.statuses(first) == pair.statuses(second) == [200, 200]
        third = http.post(f"{KEYS}/{key_id}/rotate", json={"grace_s": 2}).json()["value"]
        # the shorter grace holds for every value of before
        wait_until(lambda: pair.statuses(first) == [401, 401])
        wait_until(lambda: pair.statuses(second) == [401, 401])
        assert pair.statuses(third) == [200, 200]
        http.post(f"{KEYS}/{key_id}/rotate", json={"grace_s": 3600})
        assert pair.statuses(third) == [200, 200]
        assert http.delete(f"{KEYS}/{key_id}").status_code == 200
    assert pair.statuses(third) == [401, 401]


@pytest.mark.parametrize(
    ("body", "param"), [({"grace_s": -1}, "grace_s"), ({"grace_s": 604_801}, "grace_s"), ({"grace": 1}, "grace")]
)
def test_bad_rotations_name_the_field(pair: Pair, body: dict[str, Any], param: str) -> None:
    key_id, value = made_key(pair.first)
    with pair.first.client() as http:
        refused = http.post(f"{KEYS}/{key_id}/rotate", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert pair.statuses(value) == [200, 200]


def test_what_is_not_there_is_not_rotated(pair: Pair) -> None:
    key_id, _ = made_key(pair.first)
    with pair.first.client() as http:
        project = http.post(PROJECTS, json={"name": "other"}).json()["id"]
        for url in (
            f"{KEYS}/key_none/rotate",
            f"{PROJECTS}/{project}/api_keys/{key_id}/rotate",
            f"/v1/organization/admin_api_keys/{key_id}/rotate",
        ):
            assert http.post(url, json={}).status_code == 404
        (built_in, *_) = http.get("/v1/organization/admin_api_keys").json()["data"]
        refused = http.post(f"/v1/organization/admin_api_keys/{built_in['id']}/rotate", json={})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "built_in_key")
        made = http.post("/v1/organization/admin_api_keys", json={"name": "ops"}).json()
        rotated = http.post(f"/v1/organization/admin_api_keys/{made['id']}/rotate", json={}).json()
    assert pair.statuses(made["value"]) == [401, 401]
    with pair.second.client(rotated["value"]) as http:
        assert http.get(PROJECTS).status_code == 200


def test_two_rotations_at_once_leave_one_value(redis_url: str) -> None:
    async def story(client: Client) -> None:
        store = KeyStore(client, KeyHash(KEY_SECRET))
        await ProjectStore(client).ensure_default()
        record, _ = await store.create(KeyRecord(project="proj_default", name="k", created_at=1))
        results = await asyncio.gather(
            *(store.rotate(record.id, lambda _: None, project="proj_default", grace_s=0) for _ in range(8))
        )
        assert len(await client.call("KEYS", keys.api_key("*"))) == 1
        tried = await asyncio.gather(*(store.authenticate(value) for _, value in results), return_exceptions=True)
        assert [one.key.id for one in tried if isinstance(one, Identity)] == [record.id]
        assert sum(isinstance(one, NotAuthenticated) for one in tried) == 7

    with_store(redis_url, story)


def test_replacing_admin_key_refuses_the_former_one_at_once(pair: Pair) -> None:
    old, others = pair.first.key, pair.second.key
    assert pair.statuses(old) == pair.statuses(others) == [200, 200]
    command = [sys.executable, "-m", "services.cli", "keys", "rotate-admin", "--base-url", f"{pair.first.url}/v1"]
    said = subprocess.run(
        [*command, "--data-dir", str(pair.first.paths.home)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    new = pair.first.key
    assert new != old and new in said and "does not work any more" in said
    assert pair.first.paths.admin_key.stat().st_mode & 0o777 == 0o600
    assert pair.statuses(old) == [401, 401]
    assert pair.statuses(new) == pair.statuses(others) == [200, 200]


def test_admin_key_replaced_by_hand_or_while_nothing_runs(pair: Pair, redis_url: str) -> None:
    first = pair.first.key
    pair.first.paths.admin_key.write_text("sk-selftune-written-by-hand\n")
    assert pair.statuses(first)[0] == 401, "its own process sees the file"
    assert pair.statuses(first) == [401, 401]
    home = pair.first.paths.home
    assert pair.first.stop() == 0
    (home / "admin.key").write_text("sk-selftune-another-by-hand\n")
    pair.first = ApiServer(home, redis_url)
    assert pair.statuses("sk-selftune-written-by-hand") == [401, 401]
    assert pair.statuses("sk-selftune-another-by-hand") == [200, 200]
    (home / "admin.key").write_text(f"{first}\n")
    assert pair.statuses(first) == [200, 200], "also one that was there before"


def test_a_former_value_stays_one_when_its_record_comes_back(redis_url: str) -> None:
    async def story(client: Client) -> None:
        store = KeyStore(client, KeyHash(KEY_SECRET))
        record = KeyRecord(id="", project="proj_default", name="k", created_at=1)
        made, value = await store.create(record)
        place = keys.api_key(KeyHash(KEY_SECRET).digest(value))
        raw = await client.call("GET", place)
        await store.revoke(made.id, project="proj_default")
        await client.call("SET", place, raw)
        with pytest.raises(NotAuthenticated):
            await store.authenticate(value)

    with_store(redis_url, story)


def test_event_streams_end_with_their_key_and_answers_under_way_go_on(pair: Pair, redis_url: str) -> None:
    key_id, value = made_key(pair.first)
    job = JobRecord(
        id="ftjob-1", project="proj_default", organization="o", created_at=1, model="b", training_file="file-1",
        seed=1, requested=SupervisedHyperparameters(), model_name="ft:b:o::x",
    )  # fmt: skip
    with_store(redis_url, lambda client: JobStore(client).create(job, [event("begun")]))
    with Upstream(pause_s=1.0) as upstream:
        with_store(redis_url, lambda client: Registry(client).put_base(make_base()))
        with_store(redis_url, lambda client: Presence(client).beat_replica(make_replica(upstream.url), ttl_s=600))
        streams = [_Reading(server, value) for server in (pair.first, pair.second)]
        chat = _Reading(pair.second, value, chat=True)
        for stream in (*streams, chat):
            stream.begun.wait(timeout=20)
        with pair.first.client() as http:
            http.delete(f"{KEYS}/{key_id}").raise_for_status()
        revoked_at = time.monotonic()
        assert pair.statuses(value) == [401, 401]
        for stream in streams:
            stream.join(timeout=10)
            assert stream.ended_at is not None and stream.ended_at - revoked_at < 5
            assert b"begun" in stream.read and b"[DONE]" not in stream.read
        chat.join(timeout=30)
        assert b"[DONE]" in chat.read
    for server in (pair.first, pair.second):
        assert "request.failed" not in server.log.read_text()


class _Reading(threading.Thread):
    """Reads a stream to its end."""

    def __init__(self, server: ApiServer, key: str, *, chat: bool = False) -> None:
        super().__init__(daemon=True)
        self._server, self._key, self._chat = server, key, chat
        self.begun = threading.Event()
        self.read = b""
        self.ended_at: float | None = None
        self.start()

    def run(self) -> None:
        body = {"model": BASE, "messages": [{"role": "user", "content": "hi"}], "stream": True}
        events = "/v1/fine_tuning/jobs/ftjob-1/events?stream=true"
        with self._server.client(self._key) as http:
            opened = (
                http.stream("POST", "/v1/chat/completions", json=body) if self._chat else http.stream("GET", events)
            )
            with opened as answer:
                assert answer.status_code == 200
                for piece in answer.iter_bytes():
                    self.read += piece
                    self.begun.set()
        self.ended_at = time.monotonic()


def test_plain_hashes_become_keyed_ones_and_keys_go_on_working(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "admin.key").write_text("sk-admin")  # the folder of an api
    value, key_id = ids.new_api_key(), ids.new_key_id()
    sha256 = hashlib.sha256(value.encode()).hexdigest()
    ancient = hashlib.sha256(b"sk-ancient").hexdigest()
    context = MigrationContext(settings=Settings(data_dir=str(tmp_path)), paths=Paths(tmp_path))

    async def story(client: Client) -> None:
        await client.call(
            "SET", f"selftune:key:{sha256}", f'{{"project":"proj_default","name":"n","created_at":7,"id":"{key_id}"}}'
        )
        await client.call("SET", f"selftune:key_used:{sha256}", 1_700_000_000)
        await client.call("SET", keys.key_digest(key_id), sha256)
        await client.call("SET", f"selftune:key:{ancient}", '{"project":"proj_default","name":"a","created_at":6}')
        await keyed_hashes.apply(client, context)
        await keyed_hashes.apply(client, context)
        names = b"".join(await client.call("KEYS", "*")).decode()
        assert sha256 not in names and ancient not in names
        store = KeyStore(client, KeyHash(Paths(tmp_path).key_secret.read_text().strip()))
        assert await store.last_used([key_id]) == {key_id: 1_700_000_000}
        assert (await store.authenticate(value)).key.id == key_id
        assert (await store.authenticate("sk-ancient")).key.created_at == 6
        another = MigrationContext(settings=Settings(key_secret="another-secret-0"), paths=Paths(tmp_path))
        await keyed_hashes.apply(client, another)  # there is nothing to do
        await client.call("SET", f"selftune:key:{ancient}", '{"project":"proj_default","name":"a","created_at":6}')
        with pytest.raises(KeySecretMismatch):
            await keyed_hashes.apply(client, another)
        elsewhere = Paths(tmp_path / "inference-host")
        with pytest.raises(StoreUnavailable):  # a host without the secret leaves it to an api
            await keyed_hashes.apply(client, MigrationContext(settings=Settings(), paths=elsewhere))
        assert not elsewhere.key_secret.exists()

    with_store(redis_url, story)
    assert (tmp_path / "key_hash.key").stat().st_mode & 0o777 == 0o600


def test_another_secret_is_503_and_not_a_wrong_key(pair: Pair, tmp_path: Path, redis_url: str) -> None:
    stranger = ApiServer(tmp_path / "third", redis_url, key_secret="some-other-secret")
    try:
        with stranger.client(pair.first.key) as http:
            refused = http.get("/v1/models")
            readiness = http.get("/readyz").json()
    finally:
        stranger.stop()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "key_secret_mismatch")
    assert not readiness["redis"]["ready"] and "key_hash.key" in readiness["redis"]["reason"]
    assert "key_hash.key" in stranger.log.read_text()
    assert pair.statuses(pair.first.key) == [200, 200]


def test_a_copied_database_cannot_be_given_a_key(pair: Pair, redis_url: str) -> None:
    forged = hashlib.sha256(b"sk-forged").hexdigest()

    async def plant(client: Client) -> None:
        await client.call(
            "SET", keys.api_key(forged), '{"project":"proj_default","name":"x","created_at":1,"id":"key_x"}'
        )

    with_store(redis_url, plant)
    assert pair.statuses("sk-forged") == [401, 401]
