"""How a fine-tuning job spends its time, on a running stack: OPENAI_BASE_URL and OPENAI_API_KEY say where.

    python bench/job.py [--jobs 3] [--rows 64]

Prints, for each job and as medians: seconds from submit to the first step, trained tokens per second in steady state,
seconds from the event of the last step to the new model's first token in vLLM, and from there to `succeeded`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from typing import Any

from openai import OpenAI

COLUMNS = ("to first step s", "tokens/s", "to first token s", "to succeeded s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=64)
    arguments = parser.parse_args()
    client = OpenAI()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(" | ".join(f"{column:>16}" for column in COLUMNS))
    rows = [measure(client, arguments.rows, seed) for seed in range(arguments.jobs)]
    for row in [*rows, [statistics.median(column) for column in zip(*rows, strict=True)]]:
        print(" | ".join(f"{value:>16.2f}" for value in row))


def measure(client: OpenAI, n_rows: int, seed: int) -> list[float]:
    """Run one job and return the figures in the order of COLUMNS."""
    base = next(model.id for model in client.models.list() if model.owned_by == "system")
    uploaded = client.files.create(file=("bench.jsonl", _rows(n_rows)), purpose="fine-tune")
    submitted = time.time()
    job = client.fine_tuning.jobs.create(
        model=base,
        training_file=uploaded.id,
        seed=seed,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 8}}},
    )
    first_step = 0.0
    while (job := client.fine_tuning.jobs.retrieve(job.id)).status not in {"succeeded", "failed", "cancelled"}:
        if not first_step and _steps(client, job.id):
            first_step = time.time()
        time.sleep(0.05)
    ended = time.time()
    if job.status != "succeeded":
        raise SystemExit(f"{job.id} {job.status}: {job.error}")
    steps = _steps(client, job.id)
    to_first_token = _first_token(client, job.id)
    last_step = float(steps[-1].created_at)
    speed = statistics.median(step.data["tokens_per_s"] for step in steps[1:])
    return [first_step - submitted, speed, to_first_token, ended - last_step]


def _steps(client: OpenAI, job_id: str) -> list[Any]:
    events = client.fine_tuning.jobs.list_events(job_id, limit=100).data
    return [event for event in reversed(events) if event.type == "metrics"]


def _first_token(client: OpenAI, job_id: str) -> float:
    events = client.fine_tuning.jobs.list_events(job_id, limit=10).data
    found = [e.data for e in events if isinstance(e.data, dict) and "seconds_to_first_token" in e.data]
    return float(found[0]["seconds_to_first_token"]) if found else float("nan")


def _rows(count: int) -> bytes:
    """Write rows of about 60 tokens, a short answer each."""
    text = "Sort this line of a conversation into its topic and answer with one word only, please: number {}"
    turns = [
        [{"role": "user", "content": text.format(row)}, {"role": "assistant", "content": "numbers"}]
        for row in range(count)
    ]
    return b"".join(json.dumps({"messages": messages}).encode() + b"\n" for messages in turns)


if __name__ == "__main__":
    main()
