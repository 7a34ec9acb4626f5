"""`selftune up`: database, API, trainer and inference as child processes of one supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
from msgspec.structs import replace

from services.cli import valkey
from services.cli.console import Console
from services.cli.service import Service
from shared import ids
from shared.errors import InvalidRequest, StoreUnavailable
from shared.paths import Paths, internal_key, read_or_create_secret
from shared.settings import Settings
from shared.store.client import Client

_POLL_S = 0.25
_DATABASE_DEADLINE_S = 60.0  # a long append-only file takes a while to load


def run(settings: Settings) -> int:
    """Run the stack until SIGINT or SIGTERM; returns the exit status. Raises InvalidRequest if it cannot start."""
    paths = Paths(settings.home)
    paths.prepare()
    _check_base(settings.base_model)
    with only_one(paths.home):
        _check_port(settings.host, settings.port)
        return asyncio.run(Stack(settings, paths, Console()).run())


class Stack:
    """The parts and their order: what a part needs starts before it and stops after it."""

    def __init__(self, settings: Settings, paths: Paths, console: Console) -> None:
        self._paths = paths
        self._console = console
        self._embedded = not settings.redis_url
        self._settings = replace(
            settings,
            data_dir=str(paths.home),
            redis_url=settings.database_url,
            internal_key=internal_key(settings.internal_key, paths),
        )
        self._started: list[Service] = []

    async def run(self) -> int:
        stop = _stop_on_signals(self._kill_all)
        self._announce_key()
        starting = asyncio.create_task(self._start())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await self._wait_until_ready_or(stopping)
            await stopping
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await self._stop()
        return 0

    async def _start(self) -> None:
        if self._embedded:
            command = valkey.command(self._paths.valkey, fsync=self._settings.valkey_fsync)
            # SIGTERM: it writes its file and goes, also when this process is killed.
            await self._start_service("valkey", command, stop_timeout_s=30, last_signal=signal.SIGTERM)
        await _until(self._database_answers, "the database", _DATABASE_DEADLINE_S if self._embedded else 5.0)
        for name, timeout_s in (("api", 15.0), ("trainer", 30.0), ("inference", 30.0)):
            await self._start_service(name, [sys.executable, "-m", f"services.{name}"], stop_timeout_s=timeout_s)

    async def _start_service(
        self, name: str, command: Sequence[str], *, stop_timeout_s: float, last_signal: signal.Signals = signal.SIGKILL
    ) -> None:
        log = self._paths.logs / f"{name}.log"
        service = Service(
            name, command, self._console, log=log, env=self._settings.to_env(), stop_timeout_s=stop_timeout_s,
            last_signal=last_signal,
        )  # fmt: skip
        self._started.append(service)
        await service.start()

    async def _stop(self) -> None:
        """Stop the api first and Valkey last: no new work first, the database last."""
        self._console.say("stopping")
        by_name = {service.name: service for service in self._started}
        # The API drains first, so that answers under way still have their engine; then the two that work on their own.
        for group in (("api",), ("inference", "trainer"), ("valkey",)):
            await asyncio.gather(*(by_name[name].stop() for name in group if name in by_name))
        self._console.say("stopped")

    def _kill_all(self) -> None:
        for service in reversed(self._started):
            service.kill()

    async def _database_answers(self) -> bool:
        client = Client(self._settings.redis_url, connections=1, timeout_s=2.0)
        try:
            await client.ping()
        except StoreUnavailable:
            return False
        finally:
            await client.close()
        return True

    async def _wait_until_ready_or(self, stopping: asyncio.Task[Any]) -> None:
        ready = asyncio.create_task(self._announce_ready())
        await asyncio.wait({ready, stopping}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        await asyncio.gather(ready, return_exceptions=True)

    async def _announce_ready(self) -> None:
        """Report each part that is still on its way, once, and say when the stack can do its job."""
        url = _base_url(self._settings)
        said = ""
        async with httpx2.AsyncClient(timeout=5.0) as client:
            while True:
                try:
                    answer = await client.get(f"{url}/readyz")
                    if answer.status_code == 200:
                        break
                    waiting = _waiting_for(answer.json())
                except (httpx2.HTTPError, ValueError):
                    waiting = "the API"
                if waiting != said:
                    self._console.say(f"waiting for {waiting}")
                    said = waiting
                await asyncio.sleep(_POLL_S)
        self._console.say(f"ready: base URL {url}/v1, key in {self._paths.admin_key}; Ctrl-C stops it")

    def _announce_key(self) -> None:
        key, new = read_or_create_secret(self._paths.admin_key, ids.new_api_key())
        if new:
            self._console.say(f"admin key, shown this once: {key}")
            self._console.say(f"it is kept in {self._paths.admin_key}")


def _waiting_for(report: Any) -> str:
    """Name the parts that are not ready and why, from the answer of /readyz."""
    parts = {name: part for name, part in report.items() if isinstance(part, dict)} if isinstance(report, dict) else {}
    late = [f"{name} ({part.get('reason', '')})" for name, part in parts.items() if not part.get("ready")]
    return ", ".join(late) or "the stack"


def _base_url(settings: Settings) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def _stop_on_signals(kill_all: Callable[[], None]) -> asyncio.Event:
    """Return an event that the first SIGINT or SIGTERM sets; the second kills every part at once."""
    stop = asyncio.Event()

    def handle() -> None:
        if stop.is_set():
            kill_all()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, handle)
    return stop


async def _until(condition: Callable[[], Awaitable[bool]], what: str, deadline_s: float) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + deadline_s
    while not await condition():
        if loop.time() > deadline:
            raise InvalidRequest(f"{what} does not answer after {deadline_s:g} s")
        await asyncio.sleep(0.05)


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the data folder's lock, which the kernel frees with the process. Raises InvalidRequest if it is taken."""
    with (home / "up.lock").open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            raise InvalidRequest(f"{home} is in use by process {handle.read().strip() or '?'}") from error
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def _check_port(host: str, port: int) -> None:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family):
            return
    except OSError as error:
        raise InvalidRequest(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error


def _check_base(base_model: str) -> None:
    """Refuse a base that looks like a folder and is none; anything else may be a hub id."""
    folder = Path(base_model).expanduser()
    looks_local = base_model.startswith(("/", ".", "~"))
    if looks_local and not (folder / "config.json").is_file():
        raise InvalidRequest(f"--base-model {base_model}: there is no config.json in that folder")
