"""A server in processes of its own: started, asked, weighed and ended in the same way whichever side it is."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import httpx2
import psutil

from bench.serving.adapters import Adapter
from shared.process import die_with_parent
from tests.api_server import ROOT, free_port

START_DEADLINE_S = 400.0
STOP_DEADLINE_S = 40.0
_POLL_S = 0.1


class ServerEnded(Exception):
    """A server is not there any more; the message holds the end of its log."""


class Server(ABC):
    """One side. `name` is its column in the tables, `base_id` the model that answers without an adapter."""

    name: str

    def __init__(self, folder: Path, base_id: str, *, key: str = "none") -> None:
        self.base_id = base_id
        self.port = free_port()
        self.published: set[str] = set()
        """What `Stage.publish` has published here since the start."""
        self._headers = {"authorization": f"Bearer {key}"}
        self._log = folder / f"{self.name.replace(' ', '-')}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._http = self.client()

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Form the command line."""

    @abstractmethod
    def environment(self) -> Mapping[str, str]:
        """Form the whole environment."""

    @abstractmethod
    async def publish(self, model: str, adapter: Adapter) -> None:
        """Have `model` answer with an adapter's weights; returns when the server's own call for it does."""

    @abstractmethod
    async def retire(self, model: str) -> None:
        """Take a published model away."""

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def start(self) -> float:
        """Start it and return the seconds until the base has answered. Raises ServerEnded."""
        begun = time.perf_counter()
        self._spawn()
        while not await self._answers():
            self.check_alive()
            if time.perf_counter() - begun > START_DEADLINE_S:
                raise ServerEnded(f"{self.name} did not answer within {START_DEADLINE_S:g} s:\n{self.tail()}")
            await asyncio.sleep(_POLL_S)
        return time.perf_counter() - begun

    def _spawn(self) -> None:
        """SIGTERM reaches it when this process dies: vLLM's server would leave its engine behind at SIGKILL."""
        parent = os.getpid()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=ROOT, env=self.environment(), stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
                preexec_fn=lambda: die_with_parent(signal.SIGTERM, parent_pid=parent),  # noqa: PLW1509 - one prctl
            )  # fmt: skip

    async def _answers(self) -> bool:
        body = {"model": self.base_id, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
        try:
            return (await self._http.post("/v1/completions", json=body)).status_code == 200
        except httpx2.TransportError:
            return False

    def check_alive(self) -> None:
        """Raise ServerEnded if the process is gone."""
        if not self.alive:
            raise ServerEnded(f"{self.name} has ended:\n{self.tail()}")

    def client(self) -> httpx2.AsyncClient:
        """Return an HTTP client that knows address and key."""
        url = f"http://127.0.0.1:{self.port}"
        return httpx2.AsyncClient(base_url=url, headers=self._headers, trust_env=False, timeout=600)

    def processes(self) -> list[psutil.Process]:
        """List the processes that it runs in."""
        assert self._process is not None
        first = psutil.Process(self._process.pid)
        return [first, *first.children(recursive=True)]

    def memory_mb(self) -> float:
        """Return the memory that belongs to its processes alone (USS), in MB of a million bytes."""
        return sum(process.memory_full_info().uss for process in self.processes()) / 1e6

    def cpu_s(self) -> float:
        """Return the processor seconds used so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self.processes())

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:]) if self._log.exists() else ""

    def stop(self) -> None:
        """Ask it to end, then kill what is left of it."""
        if self._process is None:
            return
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_DEADLINE_S)
        self.kill()
        self._process = None

    def kill(self) -> None:
        """End every process of it at once, as a crash would."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    async def close(self) -> None:
        """End it for good."""
        self.stop()
        await self._http.aclose()
