"""One job as a worker runs it: a training process of its own, heard through its pipe."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.training.measure import ROOT, environment
from services.trainer.protocol import SPEC_FILE, Exported, Failed, Message, Stepped, TrainSpec, encoder, message_decoder


@dataclass
class JobRun:
    """When things happened, in seconds since the process was started."""

    to_first_step: float = 0.0
    step_ends: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """Real tokens of each step."""
    total: float = 0.0
    """To the final adapter; 0 where the job was stopped after its first step."""
    peak_mb: float = 0.0

    @property
    def seconds_per_1000_tokens(self) -> float:
        """Of the steps after the first, whatever happens between them included."""
        return (self.step_ends[-1] - self.step_ends[0]) / sum(self.tokens[1:]) * 1000


def run_job(folder: Path, base: Path, rows: Path, *, only_start: bool = False, **changes: Any) -> JobRun:
    """Train on `rows` in a new process, or only as far as the first step. `folder` must not have been used before."""
    folder.mkdir(parents=True)
    values: dict[str, Any] = {
        "job_id": f"ftjob-{folder.name}", "base_id": "base", "base_folder": str(base), "base_fingerprint": "",
        "adapters_folder": str(folder / "adapters"), "training_path": str(rows), "n_epochs": 1, "batch_size": 8,
        "learning_rate_multiplier": 0.4, "seed": 1, "lr_schedule": "constant",
        "tokens_folder": str(folder.parent / "tokens"),
    }  # fmt: skip
    (folder / SPEC_FILE).write_bytes(encoder.encode(TrainSpec(**{**values, **changes})))
    read_end, write_end = os.pipe()
    run, started = JobRun(), time.perf_counter()
    with (folder / "train.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.trainer.child", str(folder), str(write_end), str(os.getpid())],
            cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[write_end],
        )  # fmt: skip
    os.close(write_end)
    try:
        with os.fdopen(read_end, "rb") as pipe:
            for line in pipe:
                _hear(message_decoder.decode(line), run, time.perf_counter() - started, process.pid)
                if run.total or (only_start and run.step_ends):
                    break
            if only_start:
                process.terminate()
            with suppress(BrokenPipeError):
                process.communicate()  # closing its stdin tells it that nothing more is wanted
    finally:
        process.kill()
    if not run.step_ends or not (only_start or run.total):
        raise SystemExit(f"the job did not train to its end:\n{(folder / 'train.log').read_text()[-3000:]}")
    return run


def _hear(message: Message, run: JobRun, at: float, pid: int) -> None:
    if isinstance(message, Failed):
        raise SystemExit(f"the job failed: {message.message}")
    if isinstance(message, Stepped):
        run.to_first_step = run.to_first_step or at
        run.step_ends.append(at)
        run.tokens.append(message.metrics.tokens)
    if isinstance(message, Exported) and message.final:
        run.total = at
        status = Path(f"/proc/{pid}/status").read_text()
        run.peak_mb = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
