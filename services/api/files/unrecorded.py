"""Files whose bytes may be in place without a record: when the database refuses it, or the process dies before.

Each has a mark from before its bytes appear until its record is known to be there, and while it is deleted. Only files
with a mark are ever deleted for want of a record, so that a database that was emptied or exchanged costs no file that a
client knows of.
"""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from shared.errors import Unavailable
from shared.paths import Paths, fsync_folder


class Unrecorded:
    """The marks. Its methods block; marking and settling twice is the same as once."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    def mark(self, file_id: str) -> None:
        """Say that a file is about to appear. Raises Unavailable when the disk does not take it."""
        try:
            self._paths.unrecorded_mark(file_id).touch()
        except OSError as error:
            raise Unavailable("The server's storage does not take the file.", code="storage_unavailable") from error

    def settle(self, file_id: str) -> None:
        """Say that a file has its record, or is gone; if the disk does not take that, it is said again later."""
        with suppress(OSError):
            self._paths.unrecorded_mark(file_id).unlink()
            fsync_folder(self._paths.unrecorded)

    def overdue(self, before: float) -> list[str]:
        """List files that nobody has tried to record since `before` (Unix time)."""
        return [mark.name for mark in self._paths.unrecorded.iterdir() if _made_at(mark, gone=before) < before]

    def is_overdue(self, file_id: str, before: float) -> bool:
        """Tell whether nobody has tried since; a file whose mark is gone was settled, and nobody tries any more."""
        return _made_at(self._paths.unrecorded_mark(file_id), gone=0.0) < before

    def set_aside(self, file_id: str) -> Path | None:
        """Move a file's folder to where it can be deleted or put back from; None if there is none."""
        folder, aside = self._paths.file_folder(file_id), self._paths.partial / f"{file_id}.{secrets.token_hex(4)}"
        try:
            os.utime(folder)  # so that it does not look abandoned there
            folder.rename(aside)
        except FileNotFoundError:
            return None
        return aside

    def put_back(self, file_id: str, aside: Path) -> None:
        """Undo set_aside(), unless the same file has appeared again meanwhile."""
        try:
            aside.rename(self._paths.file_folder(file_id))
        except OSError:
            if not self._paths.file_content(file_id).exists():
                raise
            shutil.rmtree(aside, ignore_errors=True)


def _made_at(mark: Path, *, gone: float) -> float:
    """Return when a mark was made last (Unix time), `gone` if it is no more."""
    try:
        return mark.stat().st_mtime
    except FileNotFoundError:
        return gone
