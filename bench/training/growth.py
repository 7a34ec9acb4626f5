"""Whether the cost follows the work: seconds per thousand tokens of jobs that differ in one thing only.

A longer context that the rows do not fill must cost nothing: trainers that pad rows to it pay for it.
"""

from __future__ import annotations

import random
import statistics
from pathlib import Path
from typing import Any

from bench.training.job import run_job
from bench.training.report import Line
from bench.training.rows import chats, write_jsonl

LINEAR = 1.1


def measure(base: Path, folder: Path, *, rounds: int, quick: bool) -> list[Line]:
    few = 16 if quick else 32
    rows = {count: write_jsonl(folder / f"{count}.jsonl", chats(count, random.Random(1))) for count in (few, 10 * few)}
    cases: dict[str, tuple[Path, dict[str, Any]]] = {
        "rows": (rows[few], {}),
        "10 times the rows": (rows[10 * few], {}),
        "context of 512": (rows[few], {"max_length": 512, "packing": True, "n_epochs": 2}),
        "context of 2048": (rows[few], {"max_length": 2048, "packing": True, "n_epochs": 2}),
    }
    if quick:
        del cases["rows"], cases["10 times the rows"]
    cost: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds):
        for name, (path, changes) in cases.items():
            run = run_job(folder / f"growth-{number}-{name.replace(' ', '-')}", base, path, **changes)
            cost[name].append(run.seconds_per_1000_tokens)
            print(f"  round {number + 1} {name:<18} {cost[name][-1]:.3f} s per 1,000 tokens", flush=True)
    names = list(cases)
    return [_line(cost, *names[at : at + 2]) for at in range(0, len(names), 2)]


def _line(cost: dict[str, list[float]], small: str, large: str) -> Line:
    before, after = statistics.median(cost[small]), statistics.median(cost[large])
    shown = [f"{value:.3f} s per 1,000 tokens" for value in (after, before)]
    return Line(f"{large} against {small}", shown[0], shown[1], after / before, LINEAR, at_least=False)
