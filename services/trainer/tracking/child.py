"""The process that writes a job's metrics to Weights & Biases and MLflow.

Its command is `python -m services.trainer.tracking.child FD PARENT`.

A process of its own, so that whatever wandb does (wait for the network, print, crash) never touches the training.
It reads TrackSpec and then steps from stdin, and reports to the file descriptor FD; PARENT is the process to end with.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

from services.trainer.curves import curves
from services.trainer.protocol import Stepped, encode_line
from services.trainer.tracking.mlflow import MlflowRun
from services.trainer.tracking.protocol import (
    MlflowOpened,
    Opened,
    Outcome,
    TrackSpec,
    Trouble,
    input_decoder,
    spec_decoder,
)
from shared.process import die_with_parent
from shared.schemas.integrations import WandbRun

INIT_TIMEOUT_S = 15
"""How long wandb tries to reach its server before the run is written to files only."""

EXIT_CODES: dict[Outcome, int] = {"finished": 0, "failed": 1, "killed": 255}
"""What wandb knows an end by."""

Report = Callable[[Opened | MlflowOpened | Trouble], None]


class Run:
    """One run; after its first failure it is left alone."""

    def __init__(self, spec: TrackSpec, number: int, report: Report) -> None:
        self._spec = spec
        self._report = report
        self._settings = spec.runs[number]
        self._run_id = spec.job_id if number == 0 else f"{spec.job_id}-{number}"
        self._number = number
        self._run: Any = None

    def open(self, *, online: bool) -> bool:
        """Begin, or go on with, the run; False, and a report, if wandb cannot."""
        if not self._attempt("opened online" if online else "opened", self._open, online):
            return False
        self._report(Opened(number=self._number, run_id=self._run_id, online=online))
        return True

    def log(self, step: Stepped) -> None:
        values = curves(step.metrics)
        if self._run is not None and not self._attempt("written to", self._run.log, values, step.metrics.step):
            self._run = None

    def finish(self, outcome: Outcome) -> None:
        if self._run is not None:
            self._attempt("finished", self._run.finish, EXIT_CODES[outcome])

    def _open(self, online: bool) -> None:
        import wandb

        settings = self._settings
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            name=settings.name or self._spec.job_id,
            tags=_tags(settings, self._spec),
            id=self._run_id,
            resume="allow",
            reinit="create_new",
            mode="online" if online else "offline",
            dir=self._spec.folder,
            config=self._spec.config,
            settings=_quiet_settings(),
        )

    def _attempt(self, done: str, act: Callable[..., object], *arguments: object) -> bool:
        """Do something with wandb; False, and a report, if it fails. wandb raises whatever its parts raise."""
        try:
            act(*arguments)
        except Exception as error:  # noqa: BLE001 - the job's owner needs a reason, the log the traceback
            traceback.print_exc()
            reason = " ".join(str(error).split())[:300]
            self._report(Trouble(message=f"a run could not be {done}: {type(error).__name__}: {reason}"))
            return False
        return True


def _tags(settings: WandbRun, spec: TrackSpec) -> list[str]:
    """Combine the owner's tags with ours; wandb takes 64 characters a tag."""
    return list(dict.fromkeys(tag[:64] for tag in [*settings.tags, *spec.tags]))


def _quiet_settings() -> Any:
    """Send the metrics and nothing else: no output, code, packages, or figures of the machine."""
    import wandb

    return wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        init_timeout=INIT_TIMEOUT_S,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )


def open_runs(spec: TrackSpec, report: Report) -> list[Run]:
    """Open every run online if that is wanted and works for all of them, else in files."""
    runs = [Run(spec, number, report) for number in range(len(spec.runs))]
    if spec.online and runs:
        if all(run.open(online=True) for run in runs):
            return runs
        import wandb

        wandb.teardown()  # else it holds on to the ids of the runs
    for run in runs:
        run.open(online=False)
    return runs


def main(commands: BinaryIO, report: Report) -> None:
    """Open the runs, write every step, and finish them when told, or when the supervisor closes the pipe."""
    spec = spec_decoder.decode(commands.readline())
    runs: list[Run | MlflowRun] = [*open_runs(spec, report)]
    if spec.mlflow is not None:
        mlflow = MlflowRun(spec, spec.mlflow, report)
        mlflow.open()
        runs.append(mlflow)
    outcome: Outcome = "killed"
    while line := commands.readline():
        command = input_decoder.decode(line)
        if not isinstance(command, Stepped):
            outcome = command.outcome
            break
        for run in runs:
            run.log(command)
    for run in runs:
        run.finish(outcome)


def pipe_reporter(descriptor: int) -> Report:
    """Write messages to an inherited pipe, each at once."""
    pipe = os.fdopen(descriptor, "wb")

    def report(message: Opened | MlflowOpened | Trouble) -> None:
        pipe.write(encode_line(message))
        pipe.flush()

    return report


if __name__ == "__main__":
    die_with_parent(parent_pid=int(sys.argv[2]))
    # wandb reports its own errors to its makers unless told otherwise.
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    main(sys.stdin.buffer, pipe_reporter(int(sys.argv[1])))
