"""Training against other programs, on one machine, in one run.

    python -m bench.training [--rounds 3] [--only shared mixed dpo kto] [--without SIDE] [--base FOLDER] [--quick]

Every measurement runs each program in a process of its own, in turns, on the same rows in the same order, and shows
medians: LoRA of rank 16 on the seven linear layers, batches of 8, float32, no dropout, loss on answers only. Programs
of rivals.sh take part where their environments are there. `--quick` is one round of one step: whether it runs, no more.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.training import growth, rows, small_jobs, start
from bench.training import memory as memory_estimate
from bench.training.measure import Measured, Side, compare
from bench.training.report import Line, memory, print_lines, print_sides, speed
from bench.training.work import Work

RIVALS = ("llamafactory",)


def main() -> None:
    arguments = _arguments()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {arguments.rounds} rounds")
    base = arguments.base or embedded_base()
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(base, Path(folder), arguments)
        for name in arguments.only:
            print(f"\n{name}", flush=True)
            lines += MEASUREMENTS[name](bench)
    print_lines(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(MEASUREMENTS), default=list(MEASUREMENTS))
    parser.add_argument("--base", type=Path, help="folder of a base model; the embedded one if left out")
    parser.add_argument("--without", nargs="+", default=[], metavar="SIDE", help="sides that take too long")
    parser.add_argument("--rivals", type=Path, default=Path(".rivals"), help="where rivals.sh put its environments")
    parser.add_argument("--quick", action="store_true", help="one round of one step, no figures to keep")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = 1
    return arguments


def embedded_base() -> Path:
    """The embedded model, converted once into .bench."""
    from services.trainer.base.prepare import convert_embedded
    from shared.paths import Paths

    return convert_embedded(Paths(Path(".bench").absolute()))


class Bench:
    """What every measurement needs."""

    def __init__(self, base: Path, folder: Path, arguments: argparse.Namespace) -> None:
        self.base = base.absolute()
        self.folder = folder
        self.rounds: int = arguments.rounds
        self.quick: bool = arguments.quick
        pythons = {name: arguments.rivals / name / "bin" / "python" for name in RIVALS}
        self.without: list[str] = arguments.without
        self.rivals = [Side(name, str(path.absolute())) for name, path in pythons.items() if path.exists()]

    def run(self, data: str, *sides: Side, **changes: str) -> dict[str, Measured]:
        """Four counted steps are once through the 32 rows."""
        made = rows.write(data, self.folder, self.base)
        print(f"  {len(made.tokens_per_row)} rows, {sum(made.tokens_per_row)} tokens, {made.learnt} of them learnt")
        work = Work(base=str(self.base), jsonl=str(made.jsonl), tokens=str(made.tokens), **changes)
        if self.quick:
            work = replace(work, warmup=1, steps=1)
        sides = tuple(side for side in sides if side.name not in self.without)
        found = compare([Side("ours"), *sides], work, made, rounds=self.rounds)
        print_sides(", ".join([data, *changes.values()]), found)
        return found


def _shared(bench: Bench) -> list[Line]:
    found = bench.run("shared", Side("trainer_peft"), Side("trl"), *bench.rivals)
    return [
        speed("rows with a shared system prompt", found, 3.0),
        memory("peak memory, the same batches", found, "trainer_peft", 0.5),
    ]


def _mixed(bench: Bench) -> list[Line]:
    found = bench.run("mixed", Side("trainer_peft"), Side("trl"), *bench.rivals)
    return [speed("rows of mixed length, nothing shared", found, 2.2)]


def _dpo(bench: Bench) -> list[Line]:
    found = bench.run("pairs", Side("trl"), method="dpo")
    return [speed("DPO", found, 3.0, unit="pairs/s")]


def _kto(bench: Bench) -> list[Line]:
    found = bench.run("judged", Side("trl"), method="kto")
    return [speed("KTO", found, 2.0, unit="rows/s")]


def _orpo(bench: Bench) -> list[Line]:
    found = bench.run("pairs", Side("trl"), method="orpo")
    return [speed("ORPO", found, 2.0, unit="pairs/s")]


def _qlora(bench: Bench) -> list[Line]:
    found = bench.run("shared", Side("trainer_peft"), quantization="nf4")
    return [speed("QLoRA", found, 1.5), memory("QLoRA, peak memory", found, "trainer_peft", 0.8)]


def _full(bench: Bench) -> list[Line]:
    found = bench.run("shared", Side("trainer_peft"), finetuning_type="full")
    return [speed("every weight", found, 1.5), memory("every weight, peak memory", found, "trainer_peft", 0.8)]


def _growth(bench: Bench) -> list[Line]:
    return growth.measure(bench.base, bench.folder, rounds=bench.rounds, quick=bench.quick)


def _start(bench: Bench) -> list[Line]:
    return start.measure(bench.base, bench.folder, rounds=bench.rounds)


def _small_jobs(bench: Bench) -> list[Line]:
    return small_jobs.measure(bench.base, bench.folder, rounds=bench.rounds, quick=bench.quick)


def _memory(bench: Bench) -> list[Line]:
    return memory_estimate.measure(bench.base, bench.folder, rounds=bench.rounds, quick=bench.quick)


MEASUREMENTS: dict[str, Callable[[Bench], list[Line]]] = {
    "shared": _shared, "mixed": _mixed, "dpo": _dpo, "kto": _kto, "orpo": _orpo, "qlora": _qlora, "full": _full,
    "growth": _growth, "start": _start,
    "small_jobs": _small_jobs, "memory": _memory,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
