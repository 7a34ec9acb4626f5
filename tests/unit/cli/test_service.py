"""A supervised child: logged, restarted with back-off, stopped, killed if it does not stop."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from services.cli.console import Console
from services.cli.service import Service


def supervise(
    tmp_path: Path, program: str, story: Callable[[Service], Awaitable[None]], *, patience_s: float = 5
) -> str:
    """Run `story` with a service that runs a Python program; returns its log."""
    log = tmp_path / "service.log"
    if not log.is_symlink():
        log.touch()

    async def main() -> None:
        service = Service(
            "child", [sys.executable, "-u", "-c", program], Console(), log=log, env={"GIVEN": "value"},
            stop_timeout_s=patience_s,
        )  # fmt: skip
        await service.start()
        try:
            await story(service)
        finally:
            await service.stop()
        assert not service.running

    asyncio.run(main())
    return "" if log.is_symlink() else log.read_text()


async def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


def test_output_goes_to_the_log_and_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = "import os, time; print('hello', os.environ['GIVEN'], 'x' * 2_000_000); print('bye'); time.sleep(60)"

    async def story(_: Service) -> None:
        await until(lambda: "bye" in (tmp_path / "service.log").read_text())

    log = supervise(tmp_path, program, story)
    assert log.startswith("hello value xxx")
    assert "child     | bye" in capsys.readouterr().out


def test_dead_program_is_started_again_while_the_log_s_disk_is_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    async def story(_: Service) -> None:
        def seen() -> bool:
            said.append(capsys.readouterr().out)
            return "".join(said).count("child     | up") >= 3

        await until(seen)

    (tmp_path / "service.log").symlink_to("/dev/full")
    supervise(tmp_path, "print('up')", story)


def test_dead_program_is_started_again_later_and_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def story(_: Service) -> None:
        await until(lambda: (tmp_path / "service.log").read_text().count("up") >= 3)

    begun = time.monotonic()
    supervise(tmp_path, "import sys; print('up'); sys.exit(3)", story)
    assert time.monotonic() - begun >= 1.5
    told = capsys.readouterr().out
    assert "child ended unexpectedly (exit status 3); starting it again in 0.5 s" in told
    assert "starting it again in 1 s" in told


def test_program_that_ignores_the_request_is_killed_with_its_children(tmp_path: Path) -> None:
    program = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid)\n"
        "time.sleep(60)\n"
    )

    async def story(_: Service) -> None:
        await until(lambda: bool((tmp_path / "service.log").read_text().strip()))

    grandchild = int(supervise(tmp_path, program, story, patience_s=0.2).split()[0])
    assert not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE


def test_program_ends_with_its_supervisor_however_that_ends(tmp_path: Path) -> None:
    """The supervisor is killed with SIGKILL; nobody is left to stop the child but the kernel."""
    supervisor = (
        "import asyncio, os, signal, sys; from pathlib import Path\n"
        "from services.cli.console import Console; from services.cli.service import Service\n"
        "async def main():\n"
        "    command = [sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)']\n"
        f"    log = Path({str(tmp_path / 'log')!r})\n"
        "    await Service('c', command, Console(), log=log, env={}, stop_timeout_s=1).start()\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )

    async def main() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", supervisor, cwd=Path(__file__).parents[3], stdout=asyncio.subprocess.DEVNULL
        )
        log = tmp_path / "log"
        await until(lambda: log.exists() and bool(log.read_text().strip()))
        child = psutil.Process(int(log.read_text().split()[0]))
        process.kill()
        await process.wait()
        await until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)

    asyncio.run(main())
