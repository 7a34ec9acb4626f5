"""The database of a data folder, for commands that work on it while nothing else does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from services.cli import valkey
from shared import embedded_valkey
from shared.errors import InvalidRequest
from shared.process import die_with_parent
from shared.settings import Settings

Say = Callable[[str], None]
"""Takes a line for the user."""

_START_S = 60.0
_STOP_S = 60.0


@contextmanager
def database_of(settings: Settings, folder: Path) -> Iterator[str]:
    """Give the URL of the database that is set, else of the embedded one in `folder`, which runs meanwhile.

    At the end everything is in its append-only file, on disk. Raises InvalidRequest when it does not start.
    """
    if settings.redis_url:
        yield settings.redis_url
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "valkey.log").open("ab") as log:
        process = subprocess.Popen(
            valkey.command(folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for this command, which stops the server in order
            preexec_fn=die_with_parent,  # noqa: PLW1509 - no other thread is there yet
        )
    url = embedded_valkey.url(folder)
    try:
        _wait_for(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=_STOP_S)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    with redis.Redis.from_url(url, socket_connect_timeout=2, socket_timeout=2) as client:
        while True:
            try:
                client.ping()
            except redis.RedisError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise InvalidRequest("the embedded database does not start; see valkey.log beside it") from error
                time.sleep(0.05)
            else:
                return
