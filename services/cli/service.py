"""One child process of the stack: started, logged, restarted with back-off, stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from services.cli.console import Console
from shared.process import die_with_parent

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0
_HEALTHY_AFTER_S = 60.0


class Service:
    """Keeps one program running until stop().

    The child has a process group of its own, so that Ctrl-C in the terminal reaches the parent alone, which stops the
    parts in order; and the kernel kills it should the parent vanish.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        console: Console,
        *,
        log: Path,
        env: Mapping[str, str],
        stop_timeout_s: float,
        last_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        self.name = name
        self._command = command
        self._console = console
        self._log = log
        self._env = {**os.environ, **env}
        self._stop_timeout_s = stop_timeout_s
        self._last_signal = last_signal
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Start the program and keep it running; the program may not be ready yet when this returns."""
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep(), name=f"keep-{self.name}")

    async def stop(self) -> None:
        """Ask the program to end (SIGTERM), wait, and kill its whole process group if it does not."""
        self._stopping = True
        process = self._process
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), self._stop_timeout_s)
            except TimeoutError:
                self._console.say(f"{self.name} did not stop within {self._stop_timeout_s:.0f} s; killing it")
        self.kill()
        if process is not None:
            await process.wait()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    def kill(self) -> None:
        """Kill whatever is left in the program's process group."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                return

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def _spawn(self) -> None:
        parent = os.getpid()
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._env,
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(self._last_signal, parent_pid=parent),
            limit=1 << 20,
        )

    async def _keep(self) -> None:
        delay_s = _FIRST_DELAY_S
        while True:
            started = time.monotonic()
            code = await self._watch()
            if self._stopping:
                return
            self.kill()  # what the dead program left behind would hold its ports and files
            if time.monotonic() - started > _HEALTHY_AFTER_S:
                delay_s = _FIRST_DELAY_S
            self._console.say(f"{self.name} ended unexpectedly ({_reason(code)}); starting it again in {delay_s:g} s")
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
            try:
                await self._spawn()
            except OSError as error:  # no memory or no process to be had just now
                self._console.say(f"{self.name} cannot be started ({error})")

    async def _watch(self) -> int:
        """Pass the program's output on until it ends; return its exit status."""
        process = self._process
        assert process is not None and process.stdout is not None
        with self._console.log(self._log) as write:
            while line := await _read_line(process.stdout):
                write(self.name, line)
        return await process.wait()


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    """Return the next line, or a piece of one that is over the limit; empty at the end."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.LimitOverrunError as error:
        return await stream.readexactly(error.consumed)
    except asyncio.IncompleteReadError as error:
        return error.partial


def _reason(code: int) -> str:
    return f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
