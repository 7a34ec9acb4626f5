"""Reading jobs and making them: at the rates that are asked for, and as fast as it goes, beside a bare handler."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import msgspec

from bench.api.scene import api_server, median, percentile, print_table
from bench.load.client import Load, as_fast_as_it_goes, at_rate, request, row
from shared.store.client import Client
from shared.store.registry import Registry
from tests.api_server import BASE, ApiServer, free_port, make_base, with_store

READS_PER_S = 1000
CREATES_PER_S = 100
COLUMNS = ["what", "answers/s", "p50 ms", "p99 ms", "most ms", "errors"]
_ROW = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"ho"}]}\n'


def reads_and_creates(seconds: float, rounds: int) -> None:
    """Print what an api with 100 jobs gives at the rates of the aims, and how far it goes beside a bare handler."""
    with api_server() as api, bare_server() as bare_port:
        path, body = prepare(api, jobs=100)
        port, key = api.settings.port, api.key
        read, create = request("GET", path, key=key), request("POST", "/v1/fine_tuning/jobs", key=key, body=body)
        rate = asyncio.run(at_rate(port, lambda _: read, per_s=READS_PER_S, seconds=seconds, connections=16))
        made = asyncio.run(at_rate(port, lambda _: create, per_s=CREATES_PER_S, seconds=seconds, connections=16))
        print_table(
            COLUMNS,
            [
                row(f"{READS_PER_S} reads a second", rate, percentile),
                row(f"{CREATES_PER_S} creates a second", made, percentile),
            ],
        )
        sides = {"reads": read, "creates": create}
        for name, sent in sides.items():
            ours, bare = _in_turns(port, bare_port, sent, seconds / 2, rounds)
            share = median([load.per_s for load in ours]) / median([load.per_s for load in bare])
            print_table(
                COLUMNS,
                [
                    row(f"{name}, ours", _middle(ours), percentile),
                    row(f"{name}, a bare handler", _middle(bare), percentile),
                ],
            )
            print(f"{name}: {share:.2f} of a bare handler")


def queued(count: int, seconds: float) -> None:
    """Print the same rates with `count` jobs waiting."""
    with api_server() as api:
        path, body = prepare(api, jobs=count)
        port, key = api.settings.port, api.key
        read, create = request("GET", path, key=key), request("POST", "/v1/fine_tuning/jobs", key=key, body=body)
        page = request("GET", "/v1/fine_tuning/jobs?limit=20", key=key)
        rows = [
            row(
                name,
                asyncio.run(at_rate(port, lambda _, s=sent: s, per_s=per_s, seconds=seconds, connections=16)),
                percentile,
            )
            for name, sent, per_s in (("reads", read, 300), ("lists of 20", page, 100), ("creates", create, 100))
        ]
        print_table([f"with {count} jobs queued", *COLUMNS[1:]], rows)


def prepare(api: ApiServer, *, jobs: int) -> tuple[str, bytes]:
    """Let the api know a base and a file, and make jobs; returns the path of one, and the body that makes another."""

    async def fill(client: Client) -> None:
        await Registry(client).put_base(make_base())

    with_store(api.settings.redis_url, fill)
    with api.client() as client:
        uploaded = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", _ROW * 12)})
        body = msgspec.json.encode({"model": BASE, "training_file": _json(uploaded)["id"]})
        job_id = ""
        for _ in range(min(jobs, 20)):
            job_id = _json(client.post("/v1/fine_tuning/jobs", content=body, headers=_IS_JSON))["id"]
    if jobs > 20:
        sent = request("POST", "/v1/fine_tuning/jobs", key=api.key, body=body)
        seconds = (jobs - 20) / 250
        made = asyncio.run(at_rate(api.settings.port, lambda _: sent, per_s=250, seconds=seconds, connections=16))
        assert not made.errors, made.errors[:3]
    return f"/v1/fine_tuning/jobs/{job_id}", body


_IS_JSON = {"content-type": "application/json"}


def _json(response: httpx2.Response) -> dict[str, Any]:
    response.raise_for_status()
    return dict(response.json())


def _in_turns(port: int, bare_port: int, sent: bytes, seconds: float, rounds: int) -> tuple[list[Load], list[Load]]:
    """Ask both sides in turns; the first round warms up and does not count."""
    ours, bare = [], []
    for number in range(rounds + 1):
        for side_port, loads in ((port, ours), (bare_port, bare)):
            load = asyncio.run(as_fast_as_it_goes(side_port, lambda _: sent, seconds=seconds, connections=16))
            if number:
                loads.append(load)
    return ours, bare


def _middle(loads: list[Load]) -> Load:
    return sorted(loads, key=lambda load: load.per_s)[len(loads) // 2]


@contextmanager
def bare_server() -> Iterator[int]:
    """Run bench.load.bare; gives its port."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "bench.load.bare", str(port)])
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx2.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)
                break
            except httpx2.TransportError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=20)
