"""From the beginning of a job to its first step: imports, 1,000 rows to tokenise, the model, the look ahead.

    python -m bench.training.start BASE FOLDER

The first job comes to a worker that has just started; the second, with other rows, finds it warm. Each round is a
Python of its own, since that is what a worker is.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
from pathlib import Path

from bench.training.measure import ROOT, environment
from bench.training.report import Line
from bench.training.rows import chats, write_jsonl

AIMS_S = {"first job of a worker": 15.0, "second job": 3.0}


def measure(base: Path, folder: Path, *, rounds: int) -> list[Line]:
    seconds: dict[str, list[float]] = {name: [] for name in AIMS_S}
    for number in range(rounds):
        command = [sys.executable, "-m", "bench.training.start", str(base), str(folder / f"start-{number}")]
        output = subprocess.run(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, check=True).stdout
        for name, run in zip(AIMS_S, json.loads(output), strict=True):
            seconds[name].append(run["ready"])
            print(
                f"  round {number + 1} {name}: tokens after {run['tokenized']:.1f} s, first step begins after "
                f"{run['ready']:.1f} s and ends after {run['first_step']:.1f} s",
                flush=True,
            )
    return [_line(name, statistics.median(found)) for name, found in seconds.items()]


def _line(name: str, seconds: float) -> Line:
    measure = f"begin to first step, {name}: seconds"
    return Line(measure, f"{seconds:.1f} s", "", seconds, AIMS_S[name], at_least=False)


def main(base: Path, folder: Path) -> None:
    from bench.training.job import run_job

    folder.mkdir(parents=True)
    found = []
    for number in range(len(AIMS_S)):
        rows = write_jsonl(folder / f"{number}.jsonl", chats(1000, random.Random(f"{folder.name} {number}")))
        run = run_job(folder / f"job-{number}", base, rows, only_start=True)
        found.append({"tokenized": run.tokenized, "ready": run.ready, "first_step": run.step_ends[0]})
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
