"""What it costs to force every change to disk before it is acknowledged: everysec against always.

    python -m bench.durability [--folder DIR] [--writes N]

An embedded Valkey on each setting, whose append-only file lies in DIR (the disk that is measured). Jobs are created
through the store as the api does it, one after the other and 32 at a time; the last line is a bare fsync of 4 KiB.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from services.cli import valkey
from shared import embedded_valkey, ids
from shared.errors import StoreUnavailable
from shared.records import JobRecord
from shared.schemas.methods import SupervisedHyperparameters
from shared.store.client import Client
from shared.store.jobs import JobStore, event

AT_ONCE = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, help="where the append-only file lies; the system's temporary folder")
    parser.add_argument("--writes", type=int, default=1000, help="jobs that are created in each way")
    given = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {given.writes} jobs")
    print(f"{'appendfsync':<12} {'at once':>8} {'jobs/s':>8} {'p50 ms':>8} {'p99 ms':>8}")
    for fsync in ("everysec", "always"):
        for at_once in (1, AT_ONCE):
            with tempfile.TemporaryDirectory(dir=given.folder, prefix="st-") as folder, server(Path(folder), fsync):
                took_s, times = asyncio.run(create(embedded_valkey.url(Path(folder)), given.writes, at_once))
            row = (given.writes / took_s, percentile(times, 0.5) * 1e3, percentile(times, 0.99) * 1e3)
            print(f"{fsync:<12} {at_once:>8} {row[0]:>8.0f} {row[1]:>8.2f} {row[2]:>8.2f}", flush=True)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        times = [bare_fsync(Path(folder) / "file") for _ in range(200)]
    print(
        f"{'bare fsync':<12} {'':>8} {'':>8} {percentile(times, 0.5) * 1e3:>8.2f} {percentile(times, 0.99) * 1e3:>8.2f}"
    )


@contextmanager
def server(folder: Path, fsync: Literal["everysec", "always"]) -> Iterator[None]:
    """Run the embedded database in `folder`."""
    command = valkey.command(folder, fsync=fsync)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


async def create(url: str, writes: int, at_once: int) -> tuple[float, list[float]]:
    """Create jobs, and return how long all of them and each of them took, in seconds."""
    client = Client(url, connections=at_once + 1)
    await answering(client)
    jobs, times, left = JobStore(client), list[float](), iter(range(writes))

    async def work() -> None:
        for _ in left:
            begun = time.perf_counter()
            await jobs.create(new_job(), [event("Created fine-tuning job")])
            times.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    took_s = time.perf_counter() - begun
    await client.close()
    return took_s, times


async def answering(client: Client) -> None:
    """Return when the server answers."""
    while True:
        try:
            return await client.ping()
        except StoreUnavailable:
            await asyncio.sleep(0.05)


def new_job() -> JobRecord:
    return JobRecord(
        id=ids.new_job_id(), project="proj_default", organization="selftune", created_at=int(time.time()),
        model="base", training_file="file-x", seed=1, requested=SupervisedHyperparameters(), model_name="ft:base:x",
    )  # fmt: skip


def bare_fsync(path: Path) -> float:
    with path.open("ab") as handle:
        handle.write(bytes(4096))
        handle.flush()
        begun = time.perf_counter()
        os.fsync(handle.fileno())
        return time.perf_counter() - begun


def percentile(times: list[float], part: float) -> float:
    return sorted(times)[min(len(times) - 1, int(part * len(times)))]


if __name__ == "__main__":
    main()
