"""Starting a job's training, in one process or in several: how many, and what tells them apart from one."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from services.trainer.child_process import ChildProcess, pipe_reader, training_environment
from services.trainer.gpus import gpu_count
from services.trainer.protocol import LOG_FILE, TrainSpec
from shared.settings import Settings


async def start_training(folder: Path, spec: TrainSpec, settings: Settings) -> ChildProcess:
    """Start training the job in `folder`; what its libraries print is appended to train.log there."""
    processes = process_count(spec, settings)
    if processes == 1:
        return await ChildProcess.start(folder, settings)
    return await ProcessGroup.start_all(folder, settings, processes)


def process_count(spec: TrainSpec, settings: Settings) -> int:
    """Take as many processes as the operator wants, or one a GPU; but none that would get no row of a step."""
    wanted = settings.trainer_processes or gpu_count() or 1
    return min(wanted, spec.batch_size)


class ProcessGroup(ChildProcess):
    """A running `python -m services.trainer.group_launcher`, which speaks and listens as a single process does.

    The processes that it has started get its SIGTERM, and are killed by the kernel when it is.
    """

    @classmethod
    async def start_all(cls, folder: Path, settings: Settings, processes: int) -> ProcessGroup:
        read_end, write_end = os.pipe()
        try:
            with (folder / LOG_FILE).open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "services.trainer.group_launcher",
                    str(folder), str(write_end), str(os.getpid()), str(processes),
                    stdin=asyncio.subprocess.PIPE, stdout=output, stderr=output, pass_fds=[write_end],
                    env=training_environment(settings, processes), start_new_session=True,
                )  # fmt: skip
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        return cls(process, await pipe_reader(read_end))
