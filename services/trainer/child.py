"""The process that trains one job: `python -m services.trainer.child JOB_FOLDER MESSAGE_FD PARENT_PID`.

It reads spec.json, trains or goes on training, exports, and then stays alive to compare itself with the served model,
since starting again would cost many times what the comparison does. Messages go to MESSAGE_FD, commands come on stdin.
Exit status: 0 as asked, 1 failed with a message, anything else died.

The model libraries are imported only after the process is tied to its parent: importing them takes seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from services.trainer.failures import PeersLost, StopRequested
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
from shared.errors import SelftuneError
from shared.process import die_with_parent, let_others_go_first

if TYPE_CHECKING:
    from services.trainer.parallel import Group

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


class _Commands:
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
    folder: Path, report: Reporter, commands: BinaryIO, *, flag: StopFlag | None = None, group: Group | None = None
) -> int:
    """Run the job in `folder`, alone or in a group; every failure is reported before the exit status says so."""
    should_stop = flag or StopFlag()
    try:
        if _spec(folder).quantization == "none":
            forget_bitsandbytes()
        from services.trainer.parallel import ALONE
        from services.trainer.run_job import run_job

        run_job(folder, report, should_stop, _Commands(commands, should_stop), group or ALONE)
    except StopRequested as stop:
        report(Stopped(step=stop.step))
    except PeersLost:
        traceback.print_exc()
        return PEERS_LOST
    except SelftuneError as error:
        report(Failed(code=error.code or "training_failed", message=error.message, param=error.param))
        return 1
    except Exception as error:  # noqa: BLE001 - the supervisor needs a reason, the log the traceback
        traceback.print_exc()
        report(_failed(error, folder))
        return 1
    return 0


def forget_bitsandbytes() -> None:
    """Spare a process that needs none of it the import: peft would do it, and with it a compiler, for two seconds."""
    # None is Python's own way to say that a module is not to be had.
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]


def _spec(folder: Path) -> TrainSpec:
    return spec_decoder.decode((folder / SPEC_FILE).read_bytes())


def _failed(error: Exception, folder: Path) -> Failed:
    short = shortage(error, _spec(folder))
    if short is not None:
        return Failed(code=short.code or "training_failed", message=short.message)
    return Failed(code="training_failed", message=f"The training process failed: {type(error).__name__}.")


def pipe_reporter(descriptor: int) -> Reporter:
    """Write messages to an inherited pipe, each at once and whole."""
    pipe = os.fdopen(descriptor, "wb", buffering=0)

    def report(message: Message) -> None:
        rest = memoryview(encode_line(message))
        while rest:
            rest = rest[pipe.write(rest) :]

    return report


if __name__ == "__main__":
    die_with_parent(parent_pid=int(sys.argv[3]))
    let_others_go_first()
    sys.exit(main(Path(sys.argv[1]), pipe_reporter(int(sys.argv[2])), sys.stdin.buffer))
