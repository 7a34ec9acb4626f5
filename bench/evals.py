"""How many rows a second an eval's run answers, beside a plain asyncio client that asks the inference server itself.

    python -m bench.evals --direct http://127.0.0.1:8001 --direct-key-file DATA_DIR/internal.key [--rows 10000]

on a running stack that is otherwise idle; OPENAI_BASE_URL and OPENAI_API_KEY say where. Both sides have the same
prompts but for a first word that keeps them out of each other's prefix cache, the same sampling and as many requests
under way; they take turns. The share is ours of the plain client's, of the medians.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import secrets
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
from openai import OpenAI

SAMPLING = {"temperature": 1.0, "top_p": 1.0, "seed": 42, "max_completion_tokens": 8}
CRITERION = {
    "type": "string_check", "name": "exact", "operation": "eq",
    "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--direct", required=True, help="URL of the inference server")
    parser.add_argument("--direct-key-file", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=64, help="as eval_concurrency of the stack")
    given = parser.parse_args()
    client = OpenAI()
    model = next(one.id for one in client.models.list() if one.owned_by == "system")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    ours, plain = [], []
    for number in range(given.rounds):
        ours.append(given.rows / eval_seconds(client, model, given.rows))
        headers = {"authorization": f"Bearer {given.direct_key_file.read_text().strip()}"}
        plain.append(
            given.rows / asyncio.run(plain_seconds(given.direct, headers, model, given.rows, given.concurrency))
        )
        print(f"round {number + 1}: eval run {ours[-1]:.1f} rows/s, plain client {plain[-1]:.1f} rows/s", flush=True)
    share = statistics.median(ours) / statistics.median(plain)
    print(f"{given.rows:,} rows: {share:.1%} of the plain client's throughput")


def prompts(count: int) -> Iterator[str]:
    apart = secrets.token_hex(4)
    return (f"{apart} What is {number} plus {number}?" for number in range(count))


def eval_seconds(client: OpenAI, model: str, rows: int) -> float:
    """Return how long a run took, from its creation to its end."""
    made: Any = client.evals.create(
        name="bench", data_source_config={"type": "custom", "item_schema": {}}, testing_criteria=[CRITERION]
    )  # type: ignore[call-overload]
    content = [{"item": {"question": text, "answer": str(2 * n)}} for n, text in enumerate(prompts(rows))]
    source: Any = {
        "type": "completions",
        "model": model,
        "source": {"type": "file_content", "content": content},
        "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{ item.question }}"}]},
        "sampling_params": SAMPLING,
    }
    begun = time.perf_counter()
    run = client.evals.runs.create(made.id, data_source=source)
    while (found := client.evals.runs.retrieve(run.id, eval_id=made.id)).status not in ("completed", "failed"):
        time.sleep(1)
    took = time.perf_counter() - begun
    assert found.status == "completed" and found.result_counts.errored == 0, found.error
    client.evals.delete(made.id)
    return took


async def plain_seconds(url: str, headers: dict[str, str], model: str, rows: int, concurrency: int) -> float:
    """Return how long as many workers took that ask one request after the other."""
    waiting = prompts(rows)
    limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=600, trust_env=False, limits=limits) as client:

        async def work() -> None:
            for text in waiting:
                body = {"model": model, "messages": [{"role": "user", "content": text}], **SAMPLING}
                (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()

        begun = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(concurrency)))
        return time.perf_counter() - begun


if __name__ == "__main__":
    main()
