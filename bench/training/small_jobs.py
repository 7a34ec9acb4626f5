"""Four small jobs on one base: one after the other, each in a process of its own, or in turns in one process.

Each side begins with a fork server that has its imports behind it, as a worker's has.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from bench.training.job import peak_mb_of, prepare, run_job
from bench.training.report import Line
from bench.training.rows import chats, write_jsonl
from services.trainer.launch import processes
from services.trainer.launch.shared_process import SharedChildProcess, SharedProcess
from services.trainer.protocol import Exported, Failed, Finish
from shared.settings import Settings

Side = Callable[[Path, Path, list[Path]], tuple[float, float]]
JOBS = 4
TIME_AIM, MEMORY_AIM = 1.0, 1.3


def one_after_the_other(folder: Path, base: Path, rows: list[Path]) -> tuple[float, float]:
    """Seconds of all, and the peak memory of the largest one."""
    runs = [run_job(folder / f"job-{number}", base, path, seed=number + 1) for number, path in enumerate(rows)]
    return sum(run.total for run in runs), max(run.peak_mb for run in runs)


def together(folder: Path, base: Path, rows: list[Path]) -> tuple[float, float]:
    """Seconds until the last one is done, and the peak memory of the process."""
    return asyncio.run(_together(folder, base, rows))


async def _together(folder: Path, base: Path, rows: list[Path]) -> tuple[float, float]:
    shared = SharedProcess(Settings())
    began = time.perf_counter()
    folders = [await prepare(folder / f"job-{number}", base, path, seed=number + 1) for number, path in enumerate(rows)]
    members = [await shared.join(job) for job in folders]
    await asyncio.gather(*map(_exported, members))
    seconds, peak_mb = time.perf_counter() - began, peak_mb_of(members[0].pid)
    for member in members:
        await member.send(Finish())
        await member.stop()
    return seconds, peak_mb


async def _exported(member: SharedChildProcess) -> None:
    async for message in member.messages():
        if isinstance(message, Failed):
            raise SystemExit(f"the job failed: {message.message}")
        if isinstance(message, Exported) and message.final:
            return
    raise SystemExit("the process died")


SIDES: dict[str, Side] = {"one after the other": one_after_the_other, "together": together}


def measure(base: Path, folder: Path, *, rounds: int, quick: bool) -> list[Line]:
    asyncio.run(processes.warm_up())
    size = 8 if quick else 24
    rows = [write_jsonl(folder / f"small-{n}.jsonl", chats(size, random.Random(n))) for n in range(JOBS)]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
    for number in range(rounds):
        for name, side in SIDES.items():
            found[name].append(side(folder / f"small-{number}-{name.replace(' ', '-')}", base, rows))
            seconds, peak_mb = found[name][-1]
            print(f"  round {number + 1} {JOBS} jobs {name}: {seconds:.1f} s, {peak_mb:.0f} MB", flush=True)
    apart, shared = ([statistics.median(v) for v in zip(*runs, strict=True)] for runs in found.values())
    return [
        Line("four small jobs together, time", f"{shared[0]:.1f} s", f"one after the other {apart[0]:.1f} s",
             shared[0] / apart[0], TIME_AIM, at_least=False),
        Line("four small jobs together, memory", f"{shared[1]:.0f} MB", f"one of them {apart[1]:.0f} MB",
             shared[1] / apart[1], MEMORY_AIM, at_least=False),
    ]  # fmt: skip
