"""A job's integrations: each step goes to Weights & Biases or MLflow as well, and never at the cost of the training.

wandb runs in a process of its own (child.py), in files under the job's folder, and online if the trainer's
environment has WANDB_API_KEY. What goes wrong there becomes a warning in the job's story.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

import structlog
from msgspec import Struct
from msgspec.structs import replace

from services.trainer.launch.processes import MAX_LINE_BYTES
from services.trainer.protocol import Metrics, Stepped, TrainSpec, encode_line
from services.trainer.stores import Stores, persist_once
from services.trainer.tracking.protocol import (
    Ended,
    MlflowOpened,
    MlflowTarget,
    Opened,
    Outcome,
    TrackSpec,
    Trouble,
    output_decoder,
)
from shared.errors import LeaseLost, NotFound
from shared.outgoing import Outgoing, Refused
from shared.records import JobRecord
from shared.store.jobs import event

CLOSE_S = 30.0
"""How long the runs may take to be finished: what is not sent by then waits in the files."""
STOP_S = 2.0
"""The same while the worker stops."""
LOG_FILE = "tracking.log"
_WANDB = "https://api.wandb.ai"

log = structlog.get_logger()


@asynccontextmanager
async def tracking(stores: Stores, record: JobRecord, spec: TrainSpec, token: str) -> AsyncIterator[Tracker]:
    """Track a job's steps until the block ends, then finish its runs; a job without integrations costs nothing."""
    tracker = Tracker(stores, record, token)
    if record.integrations or record.options.mlflow:
        await tracker.start(spec)
    try:
        yield tracker
    except asyncio.CancelledError:  # this worker is stopping
        await tracker.close("killed", within_s=STOP_S)
        raise
    except LeaseLost:  # the next attempt, with the same runs, may have begun
        raise
    except Exception:
        await tracker.close("failed")
        raise
    else:  # one that succeeded is closed already
        await tracker.close("killed")
    finally:
        await tracker.kill()


class Tracker:
    """Passes steps on to the runs of one attempt; before start() it does nothing."""

    def __init__(self, stores: Stores, record: JobRecord, token: str) -> None:
        self._stores = stores
        self._record = record
        self._token = token
        self._process: asyncio.subprocess.Process | None = None
        self._listener: asyncio.Task[None] | None = None
        self._closing = False
        self._closed = False

    async def start(self, spec: TrainSpec) -> None:
        """Start the process; one that cannot be started is told of, and done without."""
        folder = self._stores.paths.job_folder(self._record.id)
        try:
            self._process, messages = await _start(folder)
        except OSError as error:
            log.warning("tracking.not_started", reason=str(error))
            await self._warn("the process that writes there could not be started; the training goes on without it")
            return
        self._listener = asyncio.create_task(self._listen(messages))
        settings = self._stores.settings
        online = bool(os.environ.get("WANDB_API_KEY"))
        try:
            Outgoing(settings.outgoing_hosts).check_library(_WANDB, "WANDB_BASE_URL", os.environ)
        except Refused as error:
            if online and self._record.integrations:
                await self._warn(f"the runs are kept in files: {error}", "Weights & Biases")
            online = False
        self._send(_track_spec(self._record, folder, spec, settings.mlflow_tracking_uri, online=online))

    def step(self, metrics: Metrics) -> None:
        """Pass a step on, without waiting."""
        self._send(Stepped(metrics=metrics))

    async def close(self, outcome: Outcome, *, within_s: float = CLOSE_S) -> None:
        """Finish the runs, in `within_s` seconds at most; twice is the same as once."""
        if self._process is None or self._listener is None or self._closed:
            return
        if not self._closing:
            self._closing = True
            self._send(Ended(outcome=outcome))
        try:
            async with asyncio.timeout(within_s):
                await asyncio.shield(self._listener)
                status = await self._process.wait()
        except TimeoutError:
            await self._warn_of_rest(within_s)
        else:
            if status != 0:
                await self._warn(_ended_early(status))
        self._closed = True

    async def _warn_of_rest(self, within_s: float) -> None:
        """Say for each target where what was not sent is."""
        late = f"not all was sent within {within_s:g} s; it is"
        if self._record.integrations:
            await self._warn(f"{late} kept in files for `wandb sync`", "Weights & Biases")
        if self._record.options.mlflow:
            await self._warn(f"{late} only in the job's own metrics", "MLflow")

    async def kill(self) -> None:
        """End the process, if it is still there, whatever it does."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)

    def _send(self, message: Struct) -> None:
        if self._process is not None and self._process.returncode is None:
            assert self._process.stdin is not None
            self._process.stdin.write(encode_line(message))

    async def _listen(self, messages: asyncio.StreamReader) -> None:
        assert self._process is not None
        while line := await messages.readline():
            match output_decoder.decode(line):
                case Opened() as opened:
                    await self._show(opened)
                case MlflowOpened() as mlflow:
                    await self._tell(f"MLflow: run {mlflow.run_id} in experiment {mlflow.experiment}")
                case Trouble() as trouble:
                    await self._warn(trouble.message, trouble.target)
        status = await self._process.wait()
        if not self._closing:
            self._closed = True
            await self._warn(_ended_early(status))

    async def _show(self, opened: Opened) -> None:
        """Put the run's id into the job."""

        def show(current: JobRecord) -> JobRecord:
            shown = list(current.integrations)
            run = replace(shown[opened.number].wandb, run_id=opened.run_id)
            shown[opened.number] = replace(shown[opened.number], wandb=run)
            return replace(current, integrations=shown)

        where = "sent as training goes" if opened.online else "kept in files for `wandb sync`"
        told = event(f"Weights & Biases: run {opened.run_id} is {where}", data={"run_id": opened.run_id})
        job_id, jobs = self._record.id, self._stores.jobs
        await self._persist(lambda nonce: jobs.update(job_id, show, [told], fence=self._token, nonce=nonce))

    async def _warn(self, trouble: str, target: str | None = None) -> None:
        log.warning("tracking.trouble", reason=trouble)
        target = target or ("Weights & Biases" if self._record.integrations else "MLflow")
        await self._tell(f"{target}: {trouble}", level="warn")

    async def _tell(self, message: str, *, level: Literal["info", "warn"] = "info") -> None:
        told = event(message, level=level)
        job_id, jobs = self._record.id, self._stores.jobs
        await self._persist(lambda nonce: jobs.append_events(job_id, [told], fence=self._token, nonce=nonce))

    async def _persist(self, write: Callable[[str], Awaitable[object]]) -> None:
        """Write to the job; one that is gone or in other hands is not ours to write to."""
        with suppress(LeaseLost, NotFound):
            await persist_once(write)


def _ended_early(status: int) -> str:
    return f"the process that writes there has ended with status {status}; the training goes on without it"


def _track_spec(record: JobRecord, folder: Path, spec: TrainSpec, mlflow_uri: str, *, online: bool) -> TrackSpec:
    mlflow = record.options.mlflow
    return TrackSpec(
        job_id=record.id,
        folder=str(folder),
        online=online,
        runs=[integration.wandb for integration in record.integrations],
        mlflow=None
        if mlflow is None
        else MlflowTarget(tracking_uri=mlflow_uri, experiment=mlflow.experiment, name=mlflow.name),
        tags=["selftune/finetune", f"selftune/{record.model}", f"selftune/{record.id}"],
        config={
            "model": record.parent or record.model,
            "method": record.method,
            "training_file": record.training_file,
            "validation_file": record.validation_file,
            "n_epochs": spec.n_epochs,
            "batch_size": spec.batch_size,
            "learning_rate_multiplier": spec.learning_rate_multiplier,
            "seed": spec.seed,
        },
    )


async def _start(folder: Path) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader]:
    """Start the process; returns it and what it reports. What wandb prints is appended to tracking.log in `folder`."""
    read_end, write_end = os.pipe()
    try:
        with (folder / LOG_FILE).open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.trainer.tracking.child", str(write_end), str(os.getpid()),
                stdin=asyncio.subprocess.PIPE, stdout=output, stderr=output, pass_fds=[write_end],
                start_new_session=True,
            )  # fmt: skip
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    return process, await _pipe_reader(read_end)


async def _pipe_reader(read_end: int) -> asyncio.StreamReader:
    """Read the other end of an inherited pipe; its lines may have 16 MiB."""
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    protocol = asyncio.StreamReaderProtocol(reader)
    pipe = os.fdopen(read_end, "rb", buffering=0)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
    return reader
