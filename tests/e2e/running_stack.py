"""A whole stack under `selftune up`, and a look at its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
from openai import OpenAI

from tests.api_server import free_port

ROOT = Path(__file__).parents[2]
READY_DEADLINE_S = 400.0


@dataclass(frozen=True)
class RunningStack:
    """One `selftune up` and how to talk to it."""

    url: str
    data_dir: Path
    process: subprocess.Popen[bytes]

    @property
    def key(self) -> str:
        return (self.data_dir / "admin.key").read_text().strip()

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=2, timeout=120)

    @property
    def log(self) -> str:
        return (self.data_dir / "up.log").read_text(errors="replace")

    def readiness(self) -> tuple[int, Any]:
        """Return status and body of /readyz; (0, None) when nothing listens."""
        try:
            answer = httpx2.get(f"{self.url}/readyz", timeout=5)
            return answer.status_code, answer.json()
        except (httpx2.HTTPError, ValueError):
            return 0, None

    def wait_until_ready(self) -> None:
        wait_for(
            lambda: self.readiness()[0] == 200, READY_DEADLINE_S, lambda: f"{self.readiness()}\n{self.log[-4000:]}"
        )

    def service(self, module: str) -> psutil.Process:
        """Return the process of a service, such as `services.api`, or of `valkey-server`."""
        for child in psutil.Process(self.process.pid).children():
            if any(module in word for word in child.cmdline()):
                return child
        raise LookupError(module)

    def training_processes(self) -> list[psutil.Process]:
        found = self.service("services.trainer").children(recursive=True)
        return [child for child in found if any("services.trainer.training.child" in word for word in child.cmdline())]


def wait_for(condition: Callable[[], bool], timeout_s: float, explain: Callable[[], str] = lambda: "") -> None:
    """Return once the condition holds. Raises AssertionError with the explanation at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {explain()}"
        time.sleep(0.1)


def launch(data_dir: Path, port: int, extra_env: Mapping[str, str], *, log: Path) -> subprocess.Popen[bytes]:
    """Start `selftune up`, in a session of its own; what it prints is appended to `log`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SELFTUNE_")}
    command = [sys.executable, "-m", "services.cli", "up", "--data-dir", str(data_dir), "--port", str(port)]
    with log.open("ab") as output:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True, env={**environment, **extra_env}
        )


@contextmanager
def running_stack(data_dir: Path, extra_env: Mapping[str, str] | None = None) -> Iterator[RunningStack]:
    """Start a stack, and stop it as Ctrl-C does; the test fails if that leaves a process or a non-zero status."""
    data_dir.mkdir(parents=True, exist_ok=True)
    port = free_port()
    process = launch(data_dir, port, extra_env or {}, log=data_dir / "up.log")
    stack = RunningStack(f"http://127.0.0.1:{port}", data_dir, process)
    try:
        yield stack
    except BaseException:
        sys.stderr.write(stack.log[-8000:])
        kill_tree(process)
        raise
    if process.poll() is None:
        descendants = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 0, stack.log[-4000:]
        assert still_alive(descendants, 5.0) == [], stack.log[-4000:]


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()


def still_alive(processes: list[psutil.Process], timeout_s: float) -> list[str]:
    """Return the command lines of the processes that have not ended after `timeout_s`."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    return [f"{process.pid} {process.name()}" for process in alive if process.status() != psutil.STATUS_ZOMBIE]
