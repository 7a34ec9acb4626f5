"""Reinforcement beside TRL's GRPOTrainer, on one machine, in one run.

    python -m bench.reinforcement [--rounds 3] [--steps 10] [--prompts 4] [--group 8] [--tokens 32] [--base FOLDER]
                                  [--quick]

Each round has a job on a stack of its own and then TRL in a process of its own: the same prompts, answers per prompt,
longest answers, reward, update and starting model. Steps per minute are those of whole steps, from the end of one to
the end of the next: answers, rewards, update, and on our side the export and loading of the adapter. Shown are medians,
and the mean reward of each step's answers. `--quick` is one round of two small steps: whether it runs, no more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from bench.reinforcement import ours
from bench.reinforcement.task import Answer, Work
from bench.training.__main__ import embedded_base
from bench.training.measure import ROOT, environment
from bench.training.report import Line, print_lines

AIM = 2.0


def main() -> None:
    arguments = _arguments()
    work = Work(
        base=str((arguments.base or embedded_base()).absolute()),
        prompts=arguments.prompts,
        group=arguments.group,
        max_completion_tokens=arguments.tokens,
        steps=arguments.steps,
    )
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {arguments.rounds} rounds")
    print(
        f"{work.total_steps} steps of {work.prompts} prompts, {work.group} answers each, "
        f"of {work.max_completion_tokens} tokens at most; the first step is not timed"
    )
    sides: dict[str, Callable[[Work, Path], Answer]] = {"ours": ours.train, "trl": trl}
    found = {name: side for name, side in sides.items() if name not in arguments.without}
    print_found(compare(found, work, rounds=arguments.rounds))


def compare(sides: dict[str, Callable[[Work, Path], Answer]], work: Work, *, rounds: int) -> dict[str, list[Answer]]:
    """Run every side `rounds` times, in turns."""
    found: dict[str, list[Answer]] = {name: [] for name in sides}
    for number in range(1, rounds + 1):
        for name, train in sides.items():
            with tempfile.TemporaryDirectory(prefix="st-") as folder:
                answer = train(work, Path(folder))
            found[name].append(answer)
            print(
                f"  round {number} {name:<5} {answer.steps_per_minute:6.2f} steps/min  {curve(answer.rewards)}",
                flush=True,
            )
    return found


def trl(work: Work, folder: Path) -> Answer:
    task, answer, log = (folder / name for name in ("work.json", "answer.json", "log"))
    task.write_text(json.dumps(asdict(work)))
    command = [sys.executable, "-m", "bench.reinforcement.trl", str(task), str(answer)]
    with log.open("wb") as output:
        status = subprocess.call(command, cwd=ROOT, env=environment(), stdout=output, stderr=output)
    if status:
        raise SystemExit(f"trl ended with status {status}:\n{log.read_text(errors='replace')[-3000:]}")
    return Answer(**json.loads(answer.read_text()))


def print_found(found: dict[str, list[Answer]]) -> None:
    """Print the medians, each side's mean rewards by step, and the ratio of the speeds."""
    speeds = {name: statistics.median(answer.steps_per_minute for answer in all_) for name, all_ in found.items()}
    for name, answers in found.items():
        rewards = [statistics.mean(step) for step in zip(*(answer.rewards for answer in answers), strict=True)]
        print(f"{name}: {speeds[name]:.2f} steps/min; mean reward by step {curve(rewards)}")
    if len(speeds) == 2:
        ours_, trl_ = speeds["ours"], speeds["trl"]
        shown = f"{ours_:.2f} steps/min", f"trl {trl_:.2f} steps/min"
        print_lines([Line("answers and update of a reinforcement step", *shown, ours_ / trl_, AIM)])


def curve(rewards: Sequence[float]) -> str:
    return " ".join(f"{reward:.3f}" for reward in rewards)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="that are timed")
    parser.add_argument("--prompts", type=int, default=4, help="in a step")
    parser.add_argument("--group", type=int, default=8, help="answers to each of them")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer, at most")
    parser.add_argument("--base", type=Path, help="folder of a base model; the embedded one if left out")
    parser.add_argument("--without", nargs="+", default=[], choices=["ours", "trl"])
    parser.add_argument("--quick", action="store_true", help="one round of two small steps, no figures to keep")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.steps, arguments.prompts, arguments.group, arguments.tokens = 1, 1, 5, 2, 8
    return arguments


if __name__ == "__main__":
    sys.exit(main())
