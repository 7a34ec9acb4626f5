"""A job's training in several processes: how many, and how they are started."""

from __future__ import annotations

from pathlib import Path

from services.trainer.launch import processes
from services.trainer.launch.child_process import ChildProcess, training_environment
from services.trainer.launch.gpus import gpu_count
from services.trainer.protocol import LOG_FILE, TrainSpec
from shared.settings import Settings

ENTRY = "services.trainer.launch.group_launcher:run"


def most_processes(settings: Settings) -> int:
    """Take as many processes as the operator wants, or one a GPU; where there are GPUs, no more than those."""
    gpus = gpu_count()
    wanted = settings.trainer_processes or gpus or 1
    return min(wanted, gpus) if gpus else wanted


def process_count(batch_size: int, settings: Settings) -> int:
    """Take no process that would get no row of a step."""
    return min(most_processes(settings), batch_size)


async def start_group(folder: Path, spec: TrainSpec, settings: Settings, token: str = "") -> ChildProcess:
    """Start services.trainer.launch.group_launcher, which speaks and listens as a single process does.

    The processes that it starts get its SIGTERM, and are killed by the kernel when it is.
    """
    count = process_count(spec.batch_size, settings)
    started = await processes.start(
        ENTRY,
        f"{count} {folder}",
        output=folder / LOG_FILE,
        environment=training_environment(settings, count, job_id=spec.job_id, token=token),
        warm=spec.quantization == "none",
    )
    return ChildProcess(started)
