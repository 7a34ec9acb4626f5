"""Whether lists stay as fast as they were when there is much to list.

    python -m bench.api.lists [--many 100000] [--requests 1500]

One project with 10 jobs, one with many; one job with 10 events, one with many; one with 3 checkpoints, one with 50,
which is one for each of the most epochs there may be. Each pair is asked in turns, for pages of the same length.
"""

from __future__ import annotations

import argparse
import asyncio
import time

import httpx2
import msgspec

from bench.api.scene import api_server, median, percentile, print_machine, print_table
from shared import ids, keys
from shared.key_hash import KeyHash
from shared.records import JobRecord
from shared.schemas.checkpoints import Checkpoint, CheckpointMetrics
from shared.schemas.methods import SupervisedHyperparameters
from shared.store.api_keys import KeyStore
from shared.store.client import Client
from shared.store.jobs import JobStore, event
from tests.api_server import KEY_SECRET

FEW = 10
BATCH = 500
_encode = msgspec.json.Encoder().encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=1500)
    arguments = parser.parse_args()
    print_machine()
    with api_server() as api:
        pairs = asyncio.run(prepare(api.settings.redis_url, arguments.many))
        with httpx2.Client(base_url=api.url, trust_env=False, timeout=60) as client:
            rows = [[name, *compare(client, few, many, arguments.requests)] for name, few, many in pairs]
    print_table(["list", "few p50 ms", "many p50 ms", "few p99 ms", "many p99 ms", "p99 many / few"], rows)


Request = tuple[str, str]
"""What follows the path of the jobs, and the key."""


async def prepare(redis_url: str, many: int) -> list[tuple[str, Request, Request]]:
    """Fill the database and return (name, request for few, request for many)."""
    client = Client(redis_url)
    for name in ("few", "many"):
        await KeyStore(client, KeyHash(KEY_SECRET)).ensure(f"sk-{name}", name=name, project=f"proj_{name}")
    few_jobs = await add_jobs(client, "proj_few", FEW)
    many_jobs = await add_jobs(client, "proj_many", many)
    await add_events(client, few_jobs[0], FEW)
    await add_events(client, many_jobs[0], many)
    await add_checkpoints(client, few_jobs[0], 3)
    await add_checkpoints(client, many_jobs[0], 50)
    middle = await client.call("XRANGE", keys.job_events(many_jobs[0]), "-", "+", "COUNT", many // 2)
    await client.close()
    few, big = few_jobs[0], many_jobs[0]
    event_id = f"ftevent-{middle[-1][0].decode()}"
    return [
        ("jobs", ("?limit=10", "few"), ("?limit=10", "many")),
        (
            "jobs, from the middle",
            (f"?limit=4&after={few_jobs[5]}", "few"),
            (f"?limit=4&after={many_jobs[many // 2]}", "many"),
        ),
        ("events", (f"/{few}/events?limit=10", "few"), (f"/{big}/events?limit=10", "many")),
        (
            "events, from the middle",
            (f"/{few}/events?limit=10", "few"),
            (f"/{big}/events?limit=10&after={event_id}", "many"),
        ),
        ("checkpoints", (f"/{few}/checkpoints?limit=3", "few"), (f"/{big}/checkpoints?limit=3", "many")),
    ]


async def add_jobs(client: Client, project: str, count: int) -> list[str]:
    """Store jobs as JobStore.create does, many in one transaction; returns their ids, oldest first."""
    made: list[str] = []
    while len(made) < count:
        records = [_job(project) for _ in range(min(BATCH, count - len(made)))]
        commands: list[tuple[str | bytes | int, ...]] = []
        for place, record in enumerate(records, len(made)):
            commands.append(("HSET", keys.job(record.id), "record", _encode(record), "version", 1))
            commands.append(("ZADD", keys.jobs(project), place, record.id))
        await client.together(commands)
        made += [record.id for record in records]
    return made


def _job(project: str) -> JobRecord:
    return JobRecord(
        id=ids.new_job_id(), project=project, organization="bench", created_at=int(time.time()), model="base",
        training_file="file-x", seed=1, requested=SupervisedHyperparameters(), model_name="ft:base:bench::x",
        metadata={"team": "bench"},
    )  # fmt: skip


async def add_events(client: Client, job_id: str, count: int) -> None:
    for start in range(0, count, BATCH):
        steps = range(start + 1, min(count, start + BATCH) + 1)
        told = [event(f"Step {step}/{count}", type="metrics", data={"step": step, "train_loss": 0.5}) for step in steps]
        await JobStore(client).append_events(job_id, told)


async def add_checkpoints(client: Client, job_id: str, count: int) -> None:
    for step in range(1, count + 1):
        checkpoint = Checkpoint(
            id=ids.new_checkpoint_id(), created_at=int(time.time()), fine_tuning_job_id=job_id, step_number=step,
            fine_tuned_model_checkpoint=f"ft:x:ckpt-step-{step}", metrics=CheckpointMetrics(step=step, train_loss=0.5),
        )  # fmt: skip
        await JobStore(client).append_checkpoint(checkpoint)


def compare(client: httpx2.Client, few: Request, many: Request, count: int) -> list[float]:
    """Ask both in turns; returns p50 of both, p99 of both, and the ratio of the p99."""
    times: dict[Request, list[float]] = {few: [], many: []}
    for number in range(count + 50):
        for path, key in (few, many):
            begun = time.perf_counter()
            client.get(f"/v1/fine_tuning/jobs{path}", headers={"authorization": f"Bearer sk-{key}"}).raise_for_status()
            if number >= 50:
                times[path, key].append((time.perf_counter() - begun) * 1000)
    p50, p99 = [median(times[r]) for r in (few, many)], [percentile(times[r], 0.99) for r in (few, many)]
    return [*p50, *p99, p99[1] / p99[0]]


if __name__ == "__main__":
    main()
