"""One job as a worker runs it: its file tokenised by one process, trained on by another, heard through its channel."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from services.trainer.data.tokenizing_protocol import Request, Tokenized, answer_decoder
from services.trainer.jobs.options import effective
from services.trainer.jobs.requirements import plan_for
from services.trainer.launch import child_process, processes, tokenizing_process
from services.trainer.memory.estimate import estimate
from services.trainer.memory.shape import read_base_shape
from services.trainer.protocol import (
    LOG_FILE,
    SPEC_FILE,
    Exported,
    Failed,
    Finish,
    Message,
    Rehearsed,
    Stepped,
    TrainSpec,
    encode_line,
    encoder,
    message_decoder,
)
from shared.schemas.methods import SupervisedHyperparameters
from shared.schemas.options import TrainingOptions
from shared.settings import Settings


@dataclass
class JobRun:
    """When things happened, in seconds since the job was begun."""

    tokenized: float = 0.0
    ready: float = 0.0
    """Everything is done that comes before the first step: imports, tokens, model, the look ahead."""
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
    """Train on `rows`, or only as far as the first step. `folder` must not have been used before."""
    return asyncio.run(_run(folder, base, rows, only_start, changes))


async def prepare(folder: Path, base: Path, rows: Path, **changes: Any) -> Path:
    """Have the rows tokenised and the job's folder ready; returns the folder."""
    folder.mkdir(parents=True)
    values: dict[str, Any] = {
        "job_id": f"ftjob-{folder.name}", "base_id": "base", "base_folder": str(base), "base_fingerprint": "",
        "adapters_folder": str(folder / "adapters"), "training_path": str(rows), "n_epochs": 1, "batch_size": 8,
        "learning_rate_multiplier": 0.4, "seed": 1, "lr_schedule": "constant",
        "tokens_folder": str(folder.parent / "tokens"),
    }  # fmt: skip
    spec = TrainSpec(**{**values, **changes})
    parts = await _tokenize(spec, changes)
    (folder / SPEC_FILE).write_bytes(encoder.encode(replace(spec, memory_parts=parts)))
    return folder


def peak_mb_of(pid: int) -> float:
    """The largest resident memory of a process so far, in MB of a million bytes."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6


async def _run(folder: Path, base: Path, rows: Path, only_start: bool, changes: dict[str, Any]) -> JobRun:
    run, began = JobRun(), time.perf_counter()
    await prepare(folder, base, rows, **changes)
    run.tokenized = time.perf_counter() - began
    started = await processes.start(
        child_process.ENTRY, str(folder), output=folder / LOG_FILE,
        environment={"OMP_NUM_THREADS": str(os.cpu_count() or 1)},
        warm=changes.get("quantization", "none") == "none",
    )  # fmt: skip
    try:
        while not run.total and not (only_start and run.step_ends):
            line = await started.reader.readline()
            if not line:
                raise SystemExit(f"the job died:\n{(folder / LOG_FILE).read_text()[-3000:]}")
            _hear(message_decoder.decode(line), run, time.perf_counter() - began)
        run.peak_mb = peak_mb_of(started.process.pid)
        with suppress(ConnectionError):
            started.writer.write(encode_line(Finish()))
            await started.writer.drain()
    finally:
        if only_start:
            started.process.kill()
        await started.process.wait()
        started.writer.close()
    return run


async def _tokenize(spec: TrainSpec, changes: dict[str, Any]) -> dict[str, int]:
    """Have the rows tokenised; returns the estimate of what training needs, part by part."""
    known = {name: value for name, value in changes.items() if name in TrainingOptions.__struct_fields__}
    options = effective(TrainingOptions(**known), Settings(), spec.max_length)
    request = Request(
        base_folder=spec.base_folder, tokens_folder=spec.tokens_folder, method=spec.method,
        max_length=spec.max_length, overlong=spec.overlong, training_path=spec.training_path,
        requested=SupervisedHyperparameters(batch_size=spec.batch_size), options=options,
    )  # fmt: skip
    _, output = await tokenizing_process.ask(request)
    answer = answer_decoder.decode(output)
    if not isinstance(answer, Tokenized):
        raise SystemExit(f"the file cannot be tokenised: {answer.message}")
    assert answer.heaviest is not None
    return estimate(read_base_shape(Path(spec.base_folder)), plan_for(options), answer.heaviest).parts()


def _hear(message: Message, run: JobRun, at: float) -> None:
    if isinstance(message, Failed):
        raise SystemExit(f"the job failed: {message.message}")
    if isinstance(message, Rehearsed):
        run.ready = at
    if isinstance(message, Stepped):
        run.step_ends.append(at)
        run.tokens.append(message.metrics.tokens)
    if isinstance(message, Exported) and message.final:
        run.total = at
