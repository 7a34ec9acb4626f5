"""Four small jobs on one base: one after the other, each in a process of its own.

`TOGETHER` is the place for the other side: a function that trains the four in one process and returns (seconds, peak
memory in MB). While it is None there is nothing to compare, and only the first side is shown.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from pathlib import Path

from bench.training.job import run_job
from bench.training.report import Line
from bench.training.rows import chats, write_jsonl

Side = Callable[[Path, Path, list[Path]], tuple[float, float]]
JOBS = 4
TIME_AIM, MEMORY_AIM = 1.0, 1.3


def one_after_the_other(folder: Path, base: Path, rows: list[Path]) -> tuple[float, float]:
    """Seconds of all, and the peak memory of the largest one."""
    runs = [run_job(folder / f"job-{number}", base, path, seed=number + 1) for number, path in enumerate(rows)]
    return sum(run.total for run in runs), max(run.peak_mb for run in runs)


TOGETHER: Side | None = None


def measure(base: Path, folder: Path, *, rounds: int, quick: bool) -> list[Line]:
    size = 8 if quick else 24
    rows = [write_jsonl(folder / f"small-{n}.jsonl", chats(size, random.Random(n))) for n in range(JOBS)]
    sides = {"one after the other": one_after_the_other} | ({"together": TOGETHER} if TOGETHER else {})
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            found[name].append(side(folder / f"small-{number}-{name.replace(' ', '-')}", base, rows))
            seconds, peak_mb = found[name][-1]
            print(f"  round {number + 1} {JOBS} jobs {name}: {seconds:.1f} s, {peak_mb:.0f} MB", flush=True)
    if "together" not in found:
        print("  together: not there yet, so neither aim is reached")
        return []
    apart, together = ([statistics.median(v) for v in zip(*runs, strict=True)] for runs in found.values())
    return [
        Line("four small jobs together, time", f"{together[0]:.1f} s", f"one after the other {apart[0]:.1f} s",
             together[0] / apart[0], TIME_AIM, at_least=False),
        Line("four small jobs together, memory", f"{together[1]:.0f} MB", f"one of them {apart[1]:.0f} MB",
             together[1] / apart[1], MEMORY_AIM, at_least=False),
    ]  # fmt: skip
