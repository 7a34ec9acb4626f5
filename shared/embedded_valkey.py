"""Where the embedded database of a data folder listens; every service finds it by the folder."""

from __future__ import annotations

import hashlib
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


def url(folder: Path) -> str:
    """Return the server's address in redis-py's form."""
    return f"unix://{socket_path(folder)}?db=0"
