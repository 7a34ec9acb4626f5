"""From the start of the training process to the end of its first step, with 1,000 rows to tokenise.

The first job finds nothing prepared for its file; the second has the same file. Both start a process; a job that finds
a warm one waiting is to be measured here as well as soon as workers keep one.
"""

from __future__ import annotations

import random
import statistics
from pathlib import Path

from bench.training.job import run_job
from bench.training.report import Line
from bench.training.rows import chats, write_jsonl

AIMS_S = {"first job": 15.0, "second job, the same file": 3.0}


def measure(base: Path, folder: Path, *, rounds: int) -> list[Line]:
    seconds: dict[str, list[float]] = {name: [] for name in AIMS_S}
    for number in range(rounds):
        rows = write_jsonl(folder / f"start-{number}.jsonl", chats(1000, random.Random(number)))
        for name, found in seconds.items():
            run = run_job(folder / f"start-{number}-{name.replace(' ', '-')}", base, rows, only_start=True)
            found.append(run.to_first_step)
            print(f"  round {number + 1} {name}: first step after {found[-1]:.1f} s", flush=True)
    return [_line(name, statistics.median(found)) for name, found in seconds.items()]


def _line(name: str, seconds: float) -> Line:
    measure = f"start to first step, {name}: seconds"
    return Line(measure, f"{seconds:.1f} s", "", seconds, AIMS_S[name], at_least=False)
