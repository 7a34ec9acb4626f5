"""Which folders on this host's disk are copies: those that an object store gave, or has taken.

A mark is a small file in `.copies/` of the data folder, neither in the folder itself, whose content has a hash, nor in
a backup. It names the folder and its inode, so that what takes the folder's place some other way is not marked.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from shared.paths import Paths, write_atomic


class _Mark(Struct, frozen=True):
    folder: str
    """Relative to the data folder."""
    inode: int


_decode = msgspec.json.Decoder(_Mark).decode


def mark_copy(paths: Paths, folder: Path) -> None:
    """Note that an object store has what a file's, an adapter's or a whole model's folder holds; of others nothing."""
    if {paths.files, paths.adapters, paths.models}.isdisjoint(folder.parents):
        return
    with suppress(FileNotFoundError):  # deleted meanwhile
        mark = _Mark(paths.relative(folder), folder.stat().st_ino)
        paths.copies.mkdir(exist_ok=True)
        write_atomic(_place(paths, mark.folder), msgspec.json.encode(mark))


def is_copy(paths: Paths, folder: Path) -> bool:
    """Tell whether a folder is the one that was marked."""
    try:
        return _decode(_place(paths, paths.relative(folder)).read_bytes()).inode == folder.stat().st_ino
    except (FileNotFoundError, msgspec.MsgspecError):
        return False


def forget_gone(paths: Paths) -> None:
    """Delete the marks of folders that are there no more, and what a process that died was writing."""
    for place in paths.copies.glob("*"):
        with suppress(FileNotFoundError, msgspec.MsgspecError):
            if not (paths.home / _decode(place.read_bytes()).folder).is_dir():
                place.unlink()


def _place(paths: Paths, relative: str) -> Path:
    return paths.copies / hashlib.sha256(os.fsencode(relative)).hexdigest()
