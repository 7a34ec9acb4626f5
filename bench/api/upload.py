"""How fast a large file comes in, beside a bare Litestar handler that writes the same bytes to the same disk.

    python -m bench.api.upload [--megabytes 512] [--rounds 3]

The bare handler is a raw body in one stream of writes and an fsync: no form, no hash, no limits, no record. The API's
process must not grow by more than a few batches.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil

from bench.api.scene import api_server, median, print_machine, print_table
from tests.api_server import ROOT, free_port

BLOCK = os.urandom(1 << 20)
BARE = """
import os, sys
from typing import Any
import uvicorn
from litestar import Litestar, Request, post

@post("/", request_max_body_size=None, status_code=200)
async def write(request: Request[Any, Any, Any]) -> None:
    with open(sys.argv[1], "wb", buffering=0) as handle:
        async for piece in request.stream():
            handle.write(piece)
        os.fsync(handle.fileno())

uvicorn.run(Litestar([write], logging_config=None), host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print_machine()
    bare, ours, growth = measure(arguments.megabytes, arguments.rounds)
    print_table(
        ["upload", "MB/s, median", "runs", "of the bare handler"],
        [
            ["bare Litestar handler", median(bare), _runs(bare), 1.0],
            ["POST /v1/files", median(ours), _runs(ours), median(ours) / median(bare)],
        ],
    )
    print(f"the API process grew by {growth / (1 << 20):.1f} MiB at most")


def measure(megabytes: int, rounds: int) -> tuple[list[float], list[float], int]:
    """Return MB/s of both, in turns, and the API's largest growth in bytes."""
    bare, ours, growth = [], [], 0
    with api_server() as api, BareServer() as bare_url, httpx2.Client(trust_env=False, timeout=600) as client:
        headers = {"authorization": f"Bearer {api.key}", "content-type": "multipart/form-data; boundary=b"}
        for number in range(rounds + 1):  # the first warms both up
            bare_speed = _timed(client, bare_url, {}, _body(megabytes), megabytes)
            with Watched(api.process.pid) as grown:
                our_speed = _timed(client, f"{api.url}/v1/files", headers, _form(megabytes), megabytes)
            if number:
                bare.append(bare_speed)
                ours.append(our_speed)
                growth = max(growth, grown[0])
    return bare, ours, growth


def _timed(client: httpx2.Client, url: str, headers: dict[str, str], body: Iterator[bytes], megabytes: int) -> float:
    begun = time.perf_counter()
    client.post(url, headers=headers, content=body).raise_for_status()
    return (megabytes << 20) / 1e6 / (time.perf_counter() - begun)


class BareServer:
    """The handler that cannot be beaten, in a process of its own; yields its URL."""

    def __enter__(self) -> str:
        self._folder = tempfile.TemporaryDirectory(prefix="st-bench-")
        port = free_port()
        command = [sys.executable, "-c", BARE, str(Path(self._folder.name) / "bytes"), str(port)]
        self._process = subprocess.Popen(command, cwd=ROOT)
        while True:
            try:
                httpx2.get(f"http://127.0.0.1:{port}/", trust_env=False)
                return f"http://127.0.0.1:{port}/"
            except httpx2.TransportError:
                time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)
        self._folder.cleanup()


class Watched:
    """Watches a process's resident memory; the growth in bytes is in the list that it yields, once it has ended."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._done = threading.Event()
        self._grown: list[int] = []

    def __enter__(self) -> list[int]:
        self._before = self._peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self._grown

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._grown.append(self._peak - self._before)

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._peak = max(self._peak, self._process.memory_info().rss)


def _body(megabytes: int) -> Iterator[bytes]:
    for _ in range(megabytes):
        yield BLOCK


def _form(megabytes: int) -> Iterator[bytes]:
    yield b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="large.jsonl"\r\n\r\n'
    yield from _body(megabytes)
    yield b"\r\n--b--\r\n"


def _runs(values: list[float]) -> str:
    return ", ".join(f"{value:.0f}" for value in values)


if __name__ == "__main__":
    main()
