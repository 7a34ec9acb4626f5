"""Redis away and back, readiness part by part, start and stop."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from shared.records import WorkerRecord
from shared.store.client import Client
from shared.store.presence import Presence
from shared.store.registry import Registry
from tests.api_server import ApiServer, make_base, make_replica, wait_until, with_store
from tests.conftest import start_valkey


@pytest.fixture
def valkey_home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="st-valkey-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def test_api_starts_without_redis_and_recovers_by_itself(valkey_home: Path, tmp_path: Path) -> None:
    server = ApiServer(tmp_path, f"unix://{valkey_home / 'valkey.sock'}")
    try:
        with server.client() as http:
            away = http.get("/v1/models")
            assert (away.status_code, away.json()["error"]["code"]) == (503, "store_unavailable")
            assert away.headers["retry-after"] == "1"
            assert http.get("/healthz").status_code == 200
            assert http.get("/readyz").json()["redis"]["ready"] is False
            valkey = start_valkey(valkey_home)
            assert http.get("/v1/models").status_code == 200
            stop(valkey)
            assert http.get("/v1/models").status_code == 503
            upload = http.post("/v1/files", files={"file": ("a", b"x"), "purpose": (None, "fine-tune")})
            assert upload.json()["error"]["code"] == "store_unavailable"
        assert "request.failed" not in server.log.read_text()
    finally:
        server.stop()


def test_readiness_names_what_is_missing_until_all_is_there(api: ApiServer, redis_url: str) -> None:
    with api.client("") as http:

        def parts() -> dict[str, bool]:
            report = http.get("/readyz").json()
            return {name: report[name]["ready"] for name in ("redis", "storage", "trainer", "inference")}

        assert parts() == {"redis": True, "storage": True, "trainer": False, "inference": False}
        report = http.get("/readyz").json()
        assert report["status"] == "not_ready"
        assert report["trainer"]["reason"] == "no trainer is running"
        assert report["inference"]["reason"] == "no base model is registered yet; no replica is running"

        async def half(client: Client) -> None:
            presence = Presence(client)
            await presence.beat_worker(WorkerRecord(id="w", state="preparing", reason="converting"), ttl_s=60)
            await presence.beat_replica(make_replica("", state="starting", reason="loading"), ttl_s=60)
            await Registry(client).put_base(make_base())

        with_store(redis_url, half)
        report = http.get("/readyz").json()
        assert report["trainer"]["reason"] == "preparing (converting)"
        assert report["inference"]["reason"] == "nothing serves org/tiny-base: starting (loading)"

        async def rest(client: Client) -> None:
            presence = Presence(client)
            await presence.beat_worker(WorkerRecord(id="w", state="idle"), ttl_s=1)
            await presence.beat_replica(make_replica("http://127.0.0.1:1"), ttl_s=60)

        with_store(redis_url, rest)
        ready = http.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        wait_until(lambda: http.get("/readyz").status_code == 503)


def test_a_base_that_was_changed_for_another_is_not_waited_for(api: ApiServer, redis_url: str) -> None:
    configured = api.settings.public_base_id

    async def change(client: Client) -> None:
        await Registry(client).put_base(make_base("org/earlier"))
        await Registry(client).put_base(make_base(configured))
        await Presence(client).beat_replica(make_replica("http://127.0.0.1:1", base=configured), ttl_s=60)

    with_store(redis_url, change)
    with api.client("") as http:
        assert http.get("/readyz").json()["inference"] == {"ready": True, "reason": ""}


def test_a_replica_of_one_merged_model_does_not_serve_its_base(api: ApiServer, redis_url: str) -> None:
    configured = api.settings.public_base_id

    async def change(client: Client) -> None:
        await Registry(client).put_base(make_base(configured))
        merged = make_replica("http://127.0.0.1:1", base=configured, merged="ft:x")
        await Presence(client).beat_replica(merged, ttl_s=60)

    with_store(redis_url, change)
    with api.client("") as http:
        assert http.get("/readyz").json()["inference"]["ready"] is False


def test_first_start_makes_keys_that_only_their_owner_reads(redis_url: str, tmp_path: Path) -> None:
    server = ApiServer(tmp_path, redis_url)
    first = server.key
    try:
        for path in (server.paths.admin_key, server.paths.internal_key):
            assert path.stat().st_mode & 0o777 == 0o600
        with server.client() as http:
            assert http.get("/v1/models").status_code == 200
        assert first not in server.log.read_text()
    finally:
        assert server.stop() == 0
    again = ApiServer(tmp_path, redis_url)
    assert again.key == first
    again.stop()


def test_process_starts_fast_and_stays_small(redis_url: str, tmp_path: Path) -> None:
    started = time.monotonic()
    server = ApiServer(tmp_path, redis_url)
    took_s = time.monotonic() - started
    try:
        assert psutil.Process(server.process.pid).memory_info().rss < 150 << 20
        assert took_s < 10, "about a second where nothing else runs"
        loaded = Path(f"/proc/{server.process.pid}/maps").read_text()
        assert "torch" not in loaded
    finally:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=30) == 0
        assert "Traceback" not in server.log.read_text()
