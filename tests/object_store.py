"""moto's S3 server in a process of its own, for tests; it keeps everything in memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.api_server import free_port

BUCKET = "selftune-tests"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


class ObjectStore:
    """A server that can be stopped, and frozen."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = Path(tempfile.mkdtemp(prefix="st-s3-")) / "s3.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
                env={**os.environ, **CREDENTIALS}, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip
        self._wait()
        httpx2.put(f"{self.url}/{BUCKET}", trust_env=False).raise_for_status()

    def settings(self, prefix: str) -> dict[str, Any]:
        """Return the settings for a part of the bucket that is the caller's alone."""
        return {"storage_url": f"s3://{BUCKET}/{prefix}", "storage_endpoint": self.url}

    def keys(self, prefix: str = "") -> list[str]:
        """List what is stored, without what this project's client would hide."""
        answer = httpx2.get(f"{self.url}/{BUCKET}?list-type=2&max-keys=1000&prefix={prefix}", trust_env=False)
        answer.raise_for_status()
        return [part.partition("</Key>")[0] for part in answer.text.split("<Key>")[1:]]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(timeout=20)

    def _wait(self, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                httpx2.get(self.url, trust_env=False)
            except httpx2.TransportError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.process.kill()
                    raise AssertionError(f"the S3 server did not start:\n{self.log.read_text()}") from None
                time.sleep(0.05)
            else:
                return


@contextmanager
def running_store() -> Iterator[ObjectStore]:
    """Run a server; its credentials are in the environment meanwhile, for this process and those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        store = ObjectStore()
        try:
            yield store
        finally:
            store.stop()


@pytest.fixture(scope="module")
def object_store() -> Iterator[ObjectStore]:
    with running_store() as store:
        yield store
