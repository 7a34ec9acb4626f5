"""The process that trains one job.

It reads spec.json, trains or goes on training, exports, and then stays alive to compare itself with the served model,
since starting again would cost many times what the comparison does. Exit status: 0 as asked, 1 failed with a message,
anything else died.

The model libraries are imported when they are needed: a new process ties itself to its parent before it spends seconds.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import structlog

from services.trainer.failures import PeersLost, StopRequested
from services.trainer.launch.observed import configure_lines
from services.trainer.launch.processes import enter
from services.trainer.protocol import (
    SPEC_FILE,
    Failed,
    Message,
    Reporter,
    Stopped,
    TrainSpec,
    encode_line,
    spec_decoder,
)
from services.trainer.shortages import shortage
from shared import tracing
from shared.errors import SelftuneError

if TYPE_CHECKING:
    from services.trainer.training.asking import Commands
    from services.trainer.training.bases import LoadBase
    from services.trainer.training.parallel import Group
    from services.trainer.training.run_job import ShouldStop

log = structlog.get_logger()

PEERS_LOST = 3
"""Exit status of a process of a group that cannot go on without another one, which has ended."""


class StopFlag:
    """Set by SIGTERM: the loop saves and stops at the next step."""

    def __init__(self) -> None:
        self.requested = False
        self.is_waiting = False
        signal.signal(signal.SIGTERM, self._request)

    def __call__(self) -> bool:
        return self.requested

    def _request(self, *_: object) -> None:
        self.requested = True
        if self.is_waiting:
            raise InterruptedError


class SignalledCommands:
    """The supervisor's commands, until SIGTERM: waiting for one ends then, as if the supervisor had closed the pipe."""

    def __init__(self, pipe: BinaryIO, flag: StopFlag) -> None:
        self._pipe = pipe
        self._flag = flag

    def readline(self) -> bytes:
        # Python goes on reading after a signal unless its handler raises (PEP 475).
        try:
            self._flag.is_waiting = True
            return b"" if self._flag.requested else self._pipe.readline()
        except InterruptedError:
            return b""
        finally:
            self._flag.is_waiting = False


def main(
    folder: Path,
    report: Reporter,
    should_stop: ShouldStop,
    commands: Commands,
    *,
    load: LoadBase | None = None,
    group: Group | None = None,
) -> int:
    """Run the job in `folder`, alone or in a group; every failure is reported before the exit status says so.

    `load` is another way to come by the base than to load it.
    """
    spec = _spec(folder)
    if group is None or group.leads:  # of a group the first speaks for all
        tracing.start("training")
    with (
        structlog.contextvars.bound_contextvars(job_id=spec.job_id),
        tracing.span("job.process", parent=spec.traceparent, job_id=spec.job_id),
    ):
        status = _main(folder, spec, report, should_stop, commands, load, group)
    tracing.flush()
    return status


def _main(
    folder: Path,
    spec: TrainSpec,
    report: Reporter,
    should_stop: ShouldStop,
    commands: Commands,
    load: LoadBase | None,
    group: Group | None,
) -> int:
    try:
        if spec.quantization == "none":
            forget_bitsandbytes()
        from services.trainer.training.model import load_base
        from services.trainer.training.parallel import ALONE
        from services.trainer.training.run_job import run_job

        use_threads()
        run_job(folder, report, should_stop, commands, load or load_base, group or ALONE)
    except StopRequested as stop:
        report(Stopped(step=stop.step))
    except PeersLost as error:
        _note(error)
        return PEERS_LOST
    except SelftuneError as error:
        report(Failed(code=error.code or "training_failed", message=error.message, param=error.param))
        return 1
    except Exception as error:  # noqa: BLE001 - the supervisor needs a reason, the log the traceback
        if group is not None and group.is_lost(error):
            _note(error)
            return PEERS_LOST
        report(_failed(error, spec))
        _note(error)
        return 1
    return 0


def _note(error: Exception) -> None:
    """Leave the traceback in the job's log, unless the disk that it is on is full, which may be the error."""
    with suppress(OSError):
        log.error("process.failed", exc_info=error)


def use_threads() -> None:
    """Compute with as many threads as the environment says; torch itself looks there when it is imported, long ago."""
    import torch

    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))


def forget_bitsandbytes() -> None:
    """Spare a process that needs none of it the import: peft would do it, and with it a compiler, for two seconds."""
    # None is Python's own way to say that a module is not to be had.
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]


def _spec(folder: Path) -> TrainSpec:
    return spec_decoder.decode((folder / SPEC_FILE).read_bytes())


def _failed(error: Exception, spec: TrainSpec) -> Failed:
    short = shortage(error, spec)
    if short is not None:
        return Failed(code=short.code or "training_failed", message=short.message)
    return Failed(code="training_failed", message=f"The training process failed: {type(error).__name__}.")


def run(channel: socket.socket, folder: str) -> int:
    """Be the process that trains the job in `folder`: messages go out through the channel, commands come in."""

    configure_lines()
    should_stop = StopFlag()
    with channel.makefile("rb") as pipe:
        return main(Path(folder), reporter(channel), should_stop, SignalledCommands(pipe, should_stop))


def reporter(channel: socket.socket) -> Reporter:
    """Write messages to a channel, each at once and whole."""

    def report(message: Message) -> None:
        try:
            channel.sendall(encode_line(message))
        except ConnectionError:
            sys.exit(1)  # the worker is dead, and the kernel is about to end this process too

    return report


if __name__ == "__main__":
    enter(run)
