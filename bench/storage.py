"""What a large file costs through the api, in the data folder and in an object store: time, and the api's memory.

    python -m bench.storage [--gigabytes 1]

Valkey, the api and moto's S3 server run as processes of their own on this machine, so an object store's figures are
those of a Python program that shares the machine and keeps every byte in memory; a real one is faster.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import psutil

from tests.api_server import ApiServer, know_key
from tests.conftest import start_valkey
from tests.object_store import running_store

_BLOCK = os.urandom(1 << 20)
_BOUNDARY = "bench"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    blocks = int(parser.parse_args().gigabytes * 1024)
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; a file of {blocks} MiB")
    print(f"{'store':<14} {'what':<9} {'s':>6} {'MB/s':>6} {'api, MB before':>15} {'MB at most':>11}")
    with tempfile.TemporaryDirectory(prefix="st-bench-") as folder, running_store() as store:
        valkey = start_valkey(Path(folder))
        try:
            for name, options in (("data folder", {}), ("object store", store.settings("bench"))):
                api = ApiServer(Path(folder) / name.replace(" ", "-"), f"unix://{folder}/valkey.sock", **options)
                try:
                    know_key(f"unix://{folder}/valkey.sock", api.key)
                    compare(name, api, blocks)
                finally:
                    api.stop()
        finally:
            valkey.terminate()
            valkey.wait()


def compare(name: str, api: ApiServer, blocks: int) -> None:
    with api.client() as client:
        client.timeout = httpx2.Timeout(900)
        file_id = report(name, "upload", api, blocks, lambda: upload(client, blocks))
        report(name, "download", api, blocks, lambda: download(client, file_id, blocks))
        client.delete(f"/v1/files/{file_id}").raise_for_status()


def report(name: str, what: str, api: ApiServer, blocks: int, work: Callable[[], str]) -> str:
    process, stop, highest = psutil.Process(api.process.pid), threading.Event(), [0]
    before = process.memory_info().rss

    def watch() -> None:
        while not stop.wait(0.05):
            highest[0] = max(highest[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.monotonic()
    try:
        result = work()
    finally:
        stop.set()
        watcher.join()
    seconds = time.monotonic() - begun
    rate = blocks * 1.048576 / seconds
    print(
        f"{name:<14} {what:<9} {seconds:>6.1f} {rate:>6.0f} {before / 1e6:>15.0f} {highest[0] / 1e6:>11.0f}", flush=True
    )
    return result


def upload(client: httpx2.Client, blocks: int) -> str:
    head = (
        f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="big.bin"\r\n\r\n'
    ).encode()
    tail = f"\r\n--{_BOUNDARY}--\r\n".encode()

    def body() -> Iterator[bytes]:
        yield head
        for _ in range(blocks):
            yield _BLOCK
        yield tail

    headers = {
        "content-type": f"multipart/form-data; boundary={_BOUNDARY}",
        "content-length": str(len(head) + len(tail) + blocks * len(_BLOCK)),
    }
    answer = client.post("/v1/files", content=body(), headers=headers)
    answer.raise_for_status()
    return str(answer.json()["id"])


def download(client: httpx2.Client, file_id: str, blocks: int) -> str:
    digest, size = hashlib.sha256(), 0
    with client.stream("GET", f"/v1/files/{file_id}/content") as answer:
        answer.raise_for_status()
        for piece in answer.iter_raw():
            digest.update(piece)
            size += len(piece)
    assert size == blocks * len(_BLOCK), f"{size} bytes came back"
    return digest.hexdigest()


if __name__ == "__main__":
    main()
