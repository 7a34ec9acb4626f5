"""Starting, hearing, commanding and stopping a training process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import structlog

from services.trainer.launch import observed
from services.trainer.launch.processes import ENVIRONMENT, Connection, start
from services.trainer.lease_file import CLAIM_VARIABLE
from services.trainer.protocol import LOG_FILE, Command, Message, TrainSpec, encode_line, message_decoder
from shared.settings import Settings

ENTRY = "services.trainer.training.child:run"
STOP_GRACE_S = 3.0

log = structlog.get_logger()


class ChildProcess:
    """A job's process, seen from the worker: services.trainer.training.child."""

    answers_within_s: float | None = 120.0
    """How long it may take to compare a few tokens; None where others' steps and evaluations come first."""

    def __init__(self, started: Connection) -> None:
        self._process = started.process
        self._messages = started.reader
        self._commands = started.writer
        self._asked_to_stop = False

    @classmethod
    async def start(cls, folder: Path, spec: TrainSpec, settings: Settings, token: str = "") -> ChildProcess:
        """Start training the job in `folder`; what its libraries print is appended to train.log there."""
        warm = spec.quantization == "none"  # see preload
        started = await start(
            ENTRY,
            str(folder),
            output=folder / LOG_FILE,
            environment=training_environment(settings, job_id=spec.job_id, token=token),
            warm=warm,
        )
        return cls(started)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def messages(self) -> AsyncIterator[Message]:
        """Yield messages until the process closes its end; lines that are no message are logged and passed over."""
        while line := await self._line():
            try:
                yield message_decoder.decode(line)
            except msgspec.MsgspecError as error:
                log.warning("child.unreadable", reason=str(error))

    async def _line(self) -> bytes:
        try:
            return await self._messages.readline()
        except ConnectionError:  # a command found the process gone
            return b""

    async def send(self, command: Command) -> None:
        """Send a command; one that finds the process gone is dropped, its end tells the rest."""
        try:
            self._commands.write(encode_line(command))
            await self._commands.drain()
        except (BrokenPipeError, ConnectionResetError):
            log.warning("child.gone", pid=self.pid)

    async def wait(self) -> int:
        """Return the exit status, negative for a signal."""
        return await self._process.wait()

    def ask_to_stop(self) -> None:
        """Ask it to save and end, which it does after its present step. Nothing happens if it has ended."""
        if self._process.returncode is None and not self._asked_to_stop:
            self._process.terminate()  # a second signal would hurry torch's launcher, in the middle of saving
        self._asked_to_stop = True

    async def stop(self) -> None:
        """Ask it to save and end; kill it after three seconds. Nothing happens if it has ended."""
        self.ask_to_stop()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_GRACE_S)
        except TimeoutError:
            await self.kill()
        self._commands.close()  # and not earlier: it may be reporting the step that it saves

    async def kill(self) -> None:
        """End the process at once, with whatever else it trains."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


def training_environment(
    settings: Settings, processes: int = 1, *, job_id: str = "", token: str = ""
) -> dict[str, str]:
    """Return what each of several processes that share the threads needs to know of the machine, and of its job.

    `token` is that of the job's lease.
    """
    threads = max(1, (settings.threads or os.cpu_count() or 1) // processes)
    # OpenMP's threads spin while they wait, which is twice as fast on idle cores (450 against 205 tokens/s on two) and
    # half as fast beside a busy process; OMP_WAIT_POLICY=PASSIVE in the trainer's environment chooses the other way.
    told = {"OMP_NUM_THREADS": str(threads), CLAIM_VARIABLE: token}
    return {**told, **ENVIRONMENT, **observed.environment(settings, job_id)}
