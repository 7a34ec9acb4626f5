"""Jobs that are trained by one process together, seen from the worker: who joins whom, and each job's part of it."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

import structlog

from services.trainer.launch import processes
from services.trainer.launch.child_process import STOP_GRACE_S, ChildProcess, training_environment
from services.trainer.launch.processes import MAX_LINE_BYTES, Connection, Process
from services.trainer.protocol import Stop, encode_line
from shared.settings import Settings

ENTRY = "services.trainer.training.shared_child:run"

log = structlog.get_logger()


class SharedProcess:
    """Starts services.trainer.training.shared_child for the first job, lets others join, and ends it with the last.

    Only jobs on the same base are together at any time: see places.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._started: Connection | None = None
        self._lock = asyncio.Lock()
        self._members = 0

    async def join(self, folder: Path) -> SharedChildProcess:
        """Have the job in `folder` trained; leave() has to follow."""
        self._members += 1
        try:
            async with self._lock:
                try:
                    return await self._send(await self._running(), folder)
                except ConnectionError:  # it has just died, and does not look so yet
                    self._started = None
                    return await self._send(await self._running(), folder)
        except BaseException:
            await self.leave()
            raise

    async def leave(self) -> None:
        """Be one job less; without any the process ends, or is ended."""
        self._members -= 1
        if self._members or self._started is None:
            return
        started, self._started = self._started, None
        started.writer.close()
        try:
            await asyncio.wait_for(started.process.wait(), STOP_GRACE_S)
        except TimeoutError:
            started.process.kill()
            await started.process.wait()

    async def _running(self) -> Connection:
        if self._started is None or self._started.process.returncode is not None:
            self._started = await processes.start(ENTRY, "", environment=training_environment(self._settings))
            log.info("shared_child.started", pid=self._started.process.pid)
        return self._started

    async def _send(self, started: Connection, folder: Path) -> SharedChildProcess:
        ours, theirs = socket.socketpair()
        with theirs, _duplicate(started.writer) as channel:
            socket.send_fds(channel, [str(folder).encode()], [theirs.fileno()])
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=MAX_LINE_BYTES)
        return SharedChildProcess(Connection(_Member(started.process, reader), reader, writer), self)


class SharedChildProcess(ChildProcess):
    """One job's part: it stops when it is told to, and the process goes on."""

    answers_within_s = None

    def __init__(self, started: Connection, shared: SharedProcess) -> None:
        super().__init__(started)
        self._shared = shared

    def ask_to_stop(self) -> None:
        if not self._asked_to_stop and not self._commands.is_closing():
            self._asked_to_stop = True
            self._commands.write(encode_line(Stop()))

    async def stop(self) -> None:
        """Ask it to save and end; after three seconds its channel is closed, and it ends at its next turn."""
        self.ask_to_stop()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_GRACE_S)
        except TimeoutError:
            log.info("shared_child.abandoned", pid=self.pid)
        self._commands.close()
        await self._shared.leave()


class _Member:
    """A job's part as a process: it has ended when its channel has."""

    def __init__(self, process: Process, reader: asyncio.StreamReader) -> None:
        self._process = process
        self._reader = reader

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        if self._process.returncode is not None:
            return self._process.returncode
        return 0 if self._reader.at_eof() or self._reader.exception() else None

    async def wait(self) -> int:
        """Return 0 for a part that ended while the process goes on, else the process's status."""
        with suppress(ConnectionError):  # so ends a channel through which something was still sent
            while await self._reader.read(MAX_LINE_BYTES):
                pass
        await asyncio.sleep(0.1)  # the end of a channel is often seen before the end of its process
        return self._process.returncode or 0

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def _duplicate(writer: asyncio.StreamWriter) -> socket.socket:
    """asyncio's own socket cannot send descriptors."""
    return socket.fromfd(writer.get_extra_info("socket").fileno(), socket.AF_UNIX, socket.SOCK_STREAM)
