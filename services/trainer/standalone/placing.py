"""A result appears whole or not at all: made in a hidden folder beside its place, synced, renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType

from services.trainer.standalone import ExportRefused
from shared.paths import fsync_folder, seal_folder

MARK = "export.json"
"""In every folder that was made here: only such a one may be replaced."""

_FILES = (".gguf", ".tar")


class Placing:
    """A context with a folder to make the result in. Whatever is left in it at the end is removed."""

    def __init__(self, target: Path, *, force: bool) -> None:
        """Check the place. Raises ExportRefused when something is there that may not be replaced."""
        self._target = target
        self._force = force
        self._check()

    def __enter__(self) -> Path:
        parent = self._target.parent
        parent.mkdir(parents=True, exist_ok=True)
        prefix = f".partial-{self._target.name}-"
        for leftover in parent.glob(f"{prefix}*"):
            _remove_unless_held(leftover)
        self._folder = parent / f"{prefix}{secrets.token_hex(4)}"
        self._folder.mkdir()
        self._lock = os.open(self._folder, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # whoever exports to the same place sees that this is no leftover
        return self._folder

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock)

    def need(self, size_bytes: int) -> None:
        """Raise ExportRefused when the disk has less room than this."""
        free = shutil.disk_usage(self._folder).free
        if free < size_bytes:
            raise ExportRefused(f"{self._target} needs {size_bytes:,} bytes, its disk has {free:,} free")

    def place(self, made: Path) -> None:
        """Put a folder, or a file of it, in its place. Raises ExportRefused when something has come there meanwhile."""
        if made.is_dir():
            seal_folder(made)
        else:
            seal_folder(made.parent)
        self._check()
        earlier = self._target.with_name(f".earlier-{self._target.name}-{secrets.token_hex(4)}")
        replaces = made.is_dir() and self._target.is_dir()
        try:
            if replaces:
                self._target.rename(earlier)
            made.rename(self._target)
        except BaseException as error:
            if replaces and earlier.exists() and not self._target.exists():
                earlier.rename(self._target)
            if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise ExportRefused(f"{self._target} is there already") from error
            raise
        fsync_folder(self._target.parent)
        shutil.rmtree(earlier, ignore_errors=True)

    def _check(self) -> None:
        target = self._target
        if target.is_dir():
            if (target / MARK).is_file() and self._force:
                return
            if any(target.iterdir()):
                hint = "it was not made by an export" if self._force else "--force replaces an export"
                raise ExportRefused(f"{target} is there and not empty; {hint}")
        elif target.exists() and not (self._force and target.suffix in _FILES):
            raise ExportRefused(
                f"{target} is there already; --force replaces a file that ends in {' or '.join(_FILES)}"
            )


def _remove_unless_held(folder: Path) -> None:
    """Remove what a process left that died; the kernel lets go of a dead process's lock."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return
    finally:
        os.close(lock)
