"""Starting processes of our own, each with a channel to it: forked from a warm one, or new.

A new Python takes some five seconds to import torch, transformers and peft. The fork server (multiprocessing's) does so
once, when the worker starts, and what is forked from it begins at once, its memory shared with the server's until it is
written to. Nothing in the server has threads or touches a GPU, which would not survive a fork; it ends with the worker,
and what was forked from it with it.
"""

from __future__ import annotations

import asyncio
import importlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Protocol

from setproctitle import setproctitle

from services.trainer.failures import ProcessDied
from shared.process import die_with_parent, let_others_go_first

MAX_LINE_BYTES = 16 << 20
PRELOADED = "services.trainer.launch.preload"

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Asked through the driver's library, the number of GPUs is known without starting CUDA, which survives no fork.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}  # fmt: skip
"""What every process that loads a model has in its environment."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([PRELOADED])

_warming = threading.Lock()
_is_warm = False

Entry = Callable[[socket.socket, str], int]
"""What such a process does with its end of the channel and its argument; returns its exit status."""


class Process(Protocol):
    """A process that was started here; `returncode` is negative for a signal, None while it runs."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    async def wait(self) -> int: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Connection:
    """A process, and our end of the channel: lines of at most 16 MiB, both ways."""

    process: Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def warm_up() -> None:
    """Start the fork server, and wait until it has imported everything; once is enough."""
    await asyncio.to_thread(_warm_up)


def _warm_up() -> None:
    global _is_warm
    with _warming:
        if not _is_warm:
            process = _context.Process(target=_do_nothing)
            process.start()
            process.join()
            _is_warm = True


def _do_nothing() -> None: ...


async def start(
    entry: str, argument: str, *, output: Path | None = None, environment: Mapping[str, str], warm: bool = True
) -> Connection:
    """Start a process that calls `entry`, an Entry named as MODULE:FUNCTION, and ends with this one.

    Only the process imports it. What it prints is appended to `output`, or goes where this process prints. With `warm`
    it is forked from the fork server; without, a new Python runs its module: DESCRIPTOR, PARENT_PID, ARGUMENT.
    """
    ours, theirs = socket.socketpair()
    begin = _fork if warm else _spawn
    try:
        process = await begin(entry, argument, theirs, output, environment)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    try:
        return Connection(process, *await asyncio.open_unix_connection(sock=ours, limit=MAX_LINE_BYTES))
    except BaseException:
        process.kill()
        raise


def enter(run: Entry) -> None:
    """Be a process that _spawn started: the last line of its module."""
    descriptor, parent_pid, argument = sys.argv[1:]
    die_with_parent(parent_pid=int(parent_pid))
    let_others_go_first()
    sys.exit(run(socket.socket(fileno=int(descriptor)), argument))


async def _spawn(
    entry: str, argument: str, channel: socket.socket, output: Path | None, environment: Mapping[str, str]
) -> Process:
    opened = None if output is None else output.open("ab")
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", entry.partition(":")[0], str(channel.fileno()), str(os.getpid()), argument,
            stdin=asyncio.subprocess.DEVNULL, stdout=opened, stderr=opened, pass_fds=[channel.fileno()],
            env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"}, start_new_session=True,
        )  # fmt: skip
    finally:
        if opened is not None:
            opened.close()


async def _fork(
    entry: str, argument: str, channel: socket.socket, output: Path | None, environment: Mapping[str, str]
) -> Process:
    process = _context.Process(
        target=_be_forked,
        args=(entry, argument, channel, output, dict(environment)),
        daemon=True,  # what is left at this process's end is ended, instead of being waited for
    )
    await warm_up()
    try:
        # In this thread: multiprocessing asks after every child at each start, and so does _Forked here.
        process.start()
    except (EOFError, ConnectionError) as error:
        raise ProcessDied("The server that starts processes ended.") from error
    return _Forked(process)


class _Forked:
    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(process.sentinel, self._note_end)

    def _note_end(self) -> None:
        self._loop.remove_reader(self._process.sentinel)
        self._ended.set()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    async def wait(self) -> int:
        await self._ended.wait()
        status = self._process.exitcode
        assert status is not None
        return status

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def _be_forked(
    entry: str, argument: str, channel: socket.socket, output: Path | None, environment: Mapping[str, str]
) -> None:
    """Be a process that _fork started: what exec would have done to a new one, then its work."""
    os.setsid()
    multiprocessing.current_process().daemon = False  # it may have processes of its own
    _end_with_worker()
    let_others_go_first()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the server blocks it
    os.environ.update(environment)
    module, _, name = entry.partition(":")
    setproctitle(f"python -m {module} {argument}")
    if output is not None:
        _print_to(output)
    run: Entry = getattr(importlib.import_module(module), name)
    sys.exit(run(channel, argument))


def _end_with_worker() -> None:
    """Have the kernel end this process with the server, which ends with the worker.

    The server waits for the end of a pipe, of which multiprocessing gives each forked process an end of its own.
    """
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    die_with_parent()
    worker = multiprocessing.parent_process()
    if worker is None or not worker.is_alive():
        sys.exit(1)


def _print_to(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
