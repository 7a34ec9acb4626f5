"""The process above those that train one job together.

It is torch's elastic launcher, as torchrun is: it starts N processes, and all of them anew when one dies; they go on
from the last resume point. They are forked, so they need not import anything, and have this process's channel, which
outlives a restart: the first of them writes messages and reads commands, as one that is alone does.

Exit status: 0 as asked, 1 failed with a message. SIGTERM goes to all; they agree on the step to save and to end at.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from services.trainer.launch.gpus import gpu_count
from services.trainer.launch.observed import configure_lines
from services.trainer.launch.processes import enter
from services.trainer.protocol import SPEC_FILE, Failed, Message, Reporter, spec_decoder
from services.trainer.shortages import ending, remedy
from services.trainer.training.child import PEERS_LOST, SignalledCommands, StopFlag, forget_bitsandbytes, main, reporter
from shared.process import die_with_parent

if TYPE_CHECKING:
    from services.trainer.training.parallel import Joined

RESTARTS = 3
"""A group that dies once more after so many restarts is given up."""
STOP_S = 60
"""How long a group may take to save and end; the worker may be less patient."""
_STOPPED = 4
_NOTICE_S = 0.5
"""Whoever lost another process ends so much later: the launcher looks ten times a second, and sees that one first."""


class Once:
    """Something that the first who asks gets, among all processes that are forked after it was made."""

    def __init__(self) -> None:
        self._left = multiprocessing.get_context("fork").Semaphore(1)

    def take(self) -> bool:
        return self._left.acquire(block=False)

    def is_taken(self) -> bool:
        return self._left.get_value() == 0


class GroupLauncher:
    """What the processes of one job share with the launcher, and with one another over restarts."""

    def __init__(self, folder: Path, report: Reporter, commands: BinaryIO, processes: int) -> None:
        self.folder = folder
        self.processes = processes
        self._report = report
        self._commands = commands
        self._failure_told = Once()
        self._launcher_pid = os.getpid()
        self._has_gpus = False

    def launch(self) -> int:
        """Start them, and wait for their end."""
        import torch
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        from services.trainer.launch import rendezvous

        rendezvous.register()
        self._has_gpus = torch.cuda.is_available() and gpu_count() >= self.processes
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self.processes,
            run_id=self.folder.name,
            role="training",
            rdzv_backend=rendezvous.NAME,
            local_addr=rendezvous.LOOPBACK,
            max_restarts=RESTARTS,
            start_method="fork",
            logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
            shutdown_timeout=STOP_S,
            virtual_local_rank=self._has_gpus,  # each process sees one GPU, its own
        )
        statuses: dict[int, int]
        try:
            statuses = elastic_launch(config, self._train)()
        except SignalException:
            return 0
        except ChildFailedError as error:
            self._tell(self._given_up(error.get_first_failure()[1].exitcode))
            return 1
        return max(statuses.values())

    def _train(self) -> int:
        """Be one of the processes. Returns when the job is through; ends the process where it is not."""
        die_with_parent(parent_pid=self._launcher_pid)
        if self._failure_told.is_taken():
            return 1  # started anew, for nothing
        from services.trainer.training.parallel import enter_group

        configure_lines()
        flag = StopFlag()
        try:
            device = enter_group("nccl" if self._has_gpus else "gloo")
        except RuntimeError:  # another one is gone already
            traceback.print_exc()
            sys.exit(PEERS_LOST)
        group = self._kind()(device)
        report = self._tell if group.leads else self._tell_failure
        status = main(self.folder, report, flag, SignalledCommands(self._commands, flag), group=group)
        if status == PEERS_LOST:
            time.sleep(_NOTICE_S)
        if status or flag.requested:
            sys.exit(status or _STOPPED)  # returning would mean to wait for the others
        group.leave()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return 0

    def _kind(self) -> type[Joined]:
        """What the processes are to one another: adapters are small, a whole model in training is divided."""
        spec = spec_decoder.decode((self.folder / SPEC_FILE).read_bytes())
        if spec.finetuning_type == "lora":
            from services.trainer.training.parallel import Joined

            return Joined
        from services.trainer.training.sharding import Sharded

        return Sharded

    def _tell(self, message: Message) -> None:
        """Report a message; of failures the first one alone, for often every process has the same to say."""
        if not isinstance(message, Failed) or self._failure_told.take():
            self._report(message)

    def _tell_failure(self, message: Message) -> None:
        if isinstance(message, Failed):
            self._tell(message)

    def _given_up(self, status: int) -> Failed:
        spec = spec_decoder.decode((self.folder / SPEC_FILE).read_bytes())
        reason = f"The processes of this training were started {RESTARTS + 1} times, and the last time one"
        return Failed(code="training_failed", message=f"{reason} {ending(status)}.{remedy(status, spec)}")


def launch(folder: Path, report: Reporter, commands: BinaryIO, processes: int) -> int:
    """Train the job in `folder` in several processes, to the end; returns the exit status."""
    _get_ready_to_fork(folder)
    return GroupLauncher(folder, report, commands, processes).launch()


def _get_ready_to_fork(folder: Path) -> None:
    """Import once what every process needs, and nothing that starts CUDA, which would not survive a fork."""
    for backend in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{backend}_SOCKET_IFNAME", "lo")  # no other machine is to reach it
    spec = spec_decoder.decode((folder / SPEC_FILE).read_bytes())
    if spec.quantization == "none":
        forget_bitsandbytes()
        import services.trainer.training.run_job  # noqa: F401


def run(channel: socket.socket, argument: str) -> int:
    """Be the launcher: the argument is the number of processes and the job's folder."""
    count, _, folder = argument.partition(" ")
    with channel.makefile("rb") as commands:
        return launch(Path(folder), reporter(channel), commands, int(count))


if __name__ == "__main__":
    enter(run)
