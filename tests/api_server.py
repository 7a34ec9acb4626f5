"""A real API process for tests, and short ways to put things into its stores."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx2

from shared.key_hash import KeyHash
from shared.paths import Paths
from shared.records import AdapterRecord, BaseRecord, ReplicaRecord
from shared.settings import Settings
from shared.store.api_keys import KeyStore
from shared.store.client import Client
from shared.store.projects import ProjectStore

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
BASE = "org/tiny-base"
KEY_SECRET = "secret-of-the-tests"
NO_METRICS: dict[str, Any] = {"api_metrics_port": 0, "trainer_metrics_port": 0, "inference_metrics_port": 0}
"""Settings of a stack among others: each would want the same ports."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ApiServer:
    """`python -m services.api` on a free port; its log is printed when it does not come up."""

    def __init__(self, home: Path, redis_url: str, **settings: Any) -> None:
        chosen = {"key_secret": KEY_SECRET, **NO_METRICS, **settings}
        self.settings = Settings(data_dir=str(home), redis_url=redis_url, port=free_port(), **chosen)
        self.paths = Paths(home)
        self.url = f"http://127.0.0.1:{self.settings.port}"
        self.log = home / "api.log"
        home.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.api"],
                env={**os.environ, "PYTHONPATH": str(ROOT), **self.settings.to_env()},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self._wait()

    @property
    def key(self) -> str:
        return self.paths.admin_key.read_text().strip()

    def client(self, key: str | None = None, **options: Any) -> httpx2.Client:
        """Return an HTTP client with the admin key, or another; an empty one sends none."""
        key = self.key if key is None else key
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx2.Client(base_url=self.url, headers=headers, trust_env=False, timeout=60, **options)

    def stop(self) -> int:
        """Ask it to end and return its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(timeout=30)
        finally:
            self.process.kill()

    def _wait(self, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                httpx2.get(f"{self.url}/healthz", trust_env=False)
            except httpx2.TransportError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.process.kill()
                    raise AssertionError(f"the api did not start:\n{self.log.read_text()}") from None
                time.sleep(0.05)
            else:
                return


def with_store(redis_url: str, work: Callable[[Client], Awaitable[T]]) -> T:
    """Run `work` with a store client of its own."""

    async def run() -> T:
        client = Client(redis_url)
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(run())


def know_key(redis_url: str, key: str, *, project: str = "proj_default") -> str:
    """Let the API know a key with every scope; the default project is there afterwards."""

    async def fill(client: Client) -> None:
        await ProjectStore(client).ensure_default()
        await KeyStore(client, KeyHash(KEY_SECRET)).ensure(key, name="test", project=project)

    with_store(redis_url, fill)
    return key


def make_base(name: str = BASE, **changes: Any) -> BaseRecord:
    fields: dict[str, Any] = {
        "id": name, "path": "/nowhere", "fingerprint": "f" * 64, "context_length": 2048, "created_at": 1_700_000_000,
    }  # fmt: skip
    return BaseRecord(**{**fields, **changes})


def make_adapter(name: str, **changes: Any) -> AdapterRecord:
    fields: dict[str, Any] = {
        "name": name, "base": BASE, "base_fingerprint": "f" * 64, "folder": "adapters/x", "sha256": "a" * 64,
        "rank": 16, "project": "proj_default", "job_id": "ftjob-x", "created_at": 1_700_000_100, "listed": True,
    }  # fmt: skip
    return AdapterRecord(**{**fields, **changes})


def make_replica(url: str, **changes: Any) -> ReplicaRecord:
    fields: dict[str, Any] = {"id": "replica-1", "url": url, "base": BASE, "state": "ready"}
    return ReplicaRecord(**{**fields, **changes})


def wait_until(condition: Callable[[], T | Literal[False] | None], *, timeout_s: float = 15.0) -> T:
    """Return the first true value of `condition`; fails after the timeout."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"still {value!r} after {timeout_s} s"
        time.sleep(0.02)
