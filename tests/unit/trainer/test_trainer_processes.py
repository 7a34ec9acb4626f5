"""Processes that are forked from a warm one: started, told to stop, ended with whoever started them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import psutil
import pytest

from services.trainer.launch import processes

ECHO = f"{__name__}:echo"
SLEEP = f"{__name__}:sleep"
WORKER = f"""
import asyncio
from services.trainer.launch import processes

async def main():
    started = await processes.start({SLEEP!r}, "", environment={{}})
    print(started.process.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def echo(channel: socket.socket, argument: str) -> int:
    with channel.makefile("rb") as lines:
        channel.sendall(f"{argument} {os.environ['ECHO']} {os.getpid()} ".encode() + lines.readline())
    print("printed")  # noqa: T201
    return 3


def sleep(_channel: socket.socket, _: str) -> int:
    time.sleep(600)
    return 0


def test_process_speaks_prints_and_ends_as_it_says(tmp_path: Path) -> None:
    async def story() -> None:
        log = tmp_path / "log"
        started = await processes.start(ECHO, "said", output=log, environment={"ECHO": "set"})
        started.writer.write(b"heard\n")
        assert (await started.reader.readline()).split() == [b"said", b"set", b"%d" % started.process.pid, b"heard"]
        assert await started.process.wait() == 3 == started.process.returncode
        assert log.read_text() == "printed\n"
        assert "ECHO" not in os.environ

    asyncio.run(story())


def test_stop_is_not_lost_while_the_process_begins() -> None:
    async def story() -> None:
        for _ in range(20):
            started = await processes.start(SLEEP, environment={}, argument="")
            started.process.terminate()
            async with asyncio.timeout(10):
                assert await started.process.wait() == -signal.SIGTERM

    asyncio.run(story())


def test_whoever_is_cancelled_while_it_starts_one_leaves_none() -> None:
    async def story() -> None:
        for delay in (0.0, *(0.0003 * count for count in range(1, 60))):
            task = asyncio.create_task(processes.start(SLEEP, "", environment={}))
            await asyncio.sleep(delay)
            if not task.cancel():
                started = await task
                started.process.kill()
                await started.process.wait()
                continue
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(story())
    titles = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert not [title for title in titles if __name__ in title]


def test_sigkill_of_the_worker_ends_its_server_and_what_was_forked() -> None:
    with subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        forked = psutil.Process(int(worker.stdout.readline()))
        family = psutil.Process(worker.pid).children(recursive=True)
        assert forked in family
        worker.kill()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def test_server_has_one_thread_and_survives_a_stop_of_its_group() -> None:
    asyncio.run(processes.warm_up())
    server = psutil.Process(forkserver._forkserver._forkserver_pid)  # type: ignore[attr-defined]
    assert server.num_threads() == 1
    server.terminate()
    with pytest.raises(psutil.TimeoutExpired):
        server.wait(0.3)
