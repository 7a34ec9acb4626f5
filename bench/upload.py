"""How fast the API takes a large file in, and what it costs in memory, on a real Valkey and a real disk.

    python bench/upload.py [--gigabytes 1]

Prints throughput beside that of writing and syncing the same bytes to the same disk, and how much the process grew.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil

BLOCK = os.urandom(1 << 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    size = int(parser.parse_args().gigabytes * 1024) << 20
    with tempfile.TemporaryDirectory(prefix="st-bench-") as folder:
        plain = _write_plainly(Path(folder) / "plain", size)
        uploaded, growth = _upload(Path(folder) / "data", size)
    print(
        f"{size >> 20} MiB: plain write and fsync {plain:.0f} MB/s, upload {uploaded:.0f} MB/s ({uploaded / plain:.0%})"
    )
    print(f"the API process grew by {growth / (1 << 20):.1f} MiB at most")


def _write_plainly(path: Path, size: int) -> float:
    begun = time.monotonic()
    with path.open("wb", buffering=0) as handle:
        for _ in range(size >> 20):
            handle.write(BLOCK)
        os.fsync(handle.fileno())
    path.unlink()
    return size / 1e6 / (time.monotonic() - begun)


def _upload(data_dir: Path, size: int) -> tuple[float, int]:
    """Return MB/s and the largest growth of the API process in bytes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "services.cli", "up", "--data-dir", str(data_dir), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as stack:
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(f"{url}/healthz")
            headers = {"authorization": f"Bearer {(data_dir / 'admin.key').read_text().strip()}"}
            httpx2.get(f"{url}/v1/files", headers=headers, timeout=30).raise_for_status()
            return _measure(f"{url}/v1/files", headers, size, _api_process(stack.pid))
        finally:
            stack.send_signal(signal.SIGTERM)


def _measure(url: str, headers: dict[str, str], size: int, api: psutil.Process) -> tuple[float, int]:
    before = peak = api.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, api.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.monotonic()
    kind = {"content-type": "multipart/form-data; boundary=b"}
    answer = httpx2.post(url, headers=headers | kind, content=_form(size), timeout=600)
    elapsed = time.monotonic() - begun
    done.set()
    watcher.join()
    answer.raise_for_status()
    return size / 1e6 / elapsed, peak - before


def _form(size: int) -> Iterator[bytes]:
    yield b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="large.jsonl"\r\n\r\n'
    for _ in range(size >> 20):
        yield BLOCK
    yield b"\r\n--b--\r\n"


def _wait(url: str) -> None:
    for _ in range(600):
        try:
            if httpx2.get(url, timeout=1).is_success:
                return
        except httpx2.HTTPError:
            time.sleep(0.1)
    raise SystemExit("the stack did not start")


def _api_process(pid: int) -> psutil.Process:
    return next(child for child in psutil.Process(pid).children() if "services.api" in child.cmdline())


if __name__ == "__main__":
    main()
