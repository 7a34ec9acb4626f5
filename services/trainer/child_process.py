"""Starting, hearing, commanding and stopping a training process."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import structlog

from services.trainer.protocol import LOG_FILE, Command, Message, encode_line, message_decoder
from shared.settings import Settings

STOP_GRACE_S = 3.0
_MAX_LINE_BYTES = 16 << 20

log = structlog.get_logger()


class ChildProcess:
    """A running `python -m services.trainer.child`."""

    def __init__(self, process: asyncio.subprocess.Process, messages: asyncio.StreamReader) -> None:
        self._process = process
        self._messages = messages

    @classmethod
    async def start(cls, folder: Path, settings: Settings) -> ChildProcess:
        """Start training the job in `folder`; what its libraries print is appended to train.log there."""
        read_end, write_end = os.pipe()
        try:
            with (folder / LOG_FILE).open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "services.trainer.child", str(folder), str(write_end), str(os.getpid()),
                    stdin=asyncio.subprocess.PIPE, stdout=output, stderr=output, pass_fds=[write_end],
                    env=training_environment(settings), start_new_session=True,
                )  # fmt: skip
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        return cls(process, await pipe_reader(read_end))

    @property
    def pid(self) -> int:
        return self._process.pid

    async def messages(self) -> AsyncIterator[Message]:
        """Yield messages until the process closes its end; lines that are no message are logged and passed over."""
        while line := await self._messages.readline():
            try:
                yield message_decoder.decode(line)
            except msgspec.MsgspecError as error:
                log.warning("child.unreadable", reason=str(error))

    async def send(self, command: Command) -> None:
        """Send a command; one that finds the process gone is dropped, its end tells the rest."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(encode_line(command))
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            log.warning("child.gone", pid=self.pid)

    async def wait(self) -> int:
        """Return the exit status, negative for a signal."""
        return await self._process.wait()

    def ask_to_stop(self) -> None:
        """Ask it to save and end, which it does after its present step. Nothing happens if it has ended."""
        if self._process.returncode is None:
            self._process.terminate()

    async def stop(self) -> None:
        """Ask it to save and end; kill it after three seconds. Nothing happens if it has ended."""
        if self._process.returncode is not None:
            return
        self.ask_to_stop()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_GRACE_S)
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


async def pipe_reader(read_end: int) -> asyncio.StreamReader:
    """Read the other end of an inherited pipe; its lines may have 16 MiB."""
    reader = asyncio.StreamReader(limit=_MAX_LINE_BYTES)
    protocol = asyncio.StreamReaderProtocol(reader)
    pipe = os.fdopen(read_end, "rb", buffering=0)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
    return reader


def training_environment(settings: Settings, processes: int = 1) -> dict[str, str]:
    """Form the environment of each of several processes that share the threads."""
    threads = max(1, (settings.threads or os.cpu_count() or 1) // processes)
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    # OpenMP's threads spin while they wait, which is twice as fast on idle cores (450 against 205 tokens/s on two) and
    # half as fast beside a busy process; OMP_WAIT_POLICY=PASSIVE in the trainer's environment chooses the other way.
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", **quiet}
