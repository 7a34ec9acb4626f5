"""Files whose bytes may be in place without a record: when the database refuses it, or the process dies before.

Each has a mark from before its bytes appear until its record is known to be there, and while it is deleted. Only files
with a mark are ever deleted for want of a record, so that a database that was emptied or exchanged costs no file that a
client knows of.
"""

from __future__ import annotations

from contextlib import suppress

from shared.blobs.interface import Blobs
from shared.errors import StorageUnavailable, Unavailable


class Unrecorded:
    """The marks, in the store that has the files. Marking and settling twice is the same as once."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._paths = blobs.paths

    async def mark(self, file_id: str) -> None:
        """Say that a file is about to appear, or to go. Raises Unavailable when the storage does not take it."""
        try:
            await self._blobs.mark(self._paths.unrecorded_mark(file_id))
        except OSError as error:
            raise Unavailable("The server's storage does not take the file.", code="storage_unavailable") from error

    async def settle(self, file_id: str) -> None:
        """Say that a file has its record, or is gone; if the storage does not take that, it is said again later."""
        with suppress(OSError, StorageUnavailable):
            await self._blobs.delete(self._paths.unrecorded_mark(file_id))

    async def overdue(self, before: float) -> list[str]:
        """List files that nobody has tried to record since `before` (Unix time)."""
        marks = await self._blobs.files(self._paths.unrecorded)
        return [file_id for file_id, made_at in marks.items() if made_at < before]

    async def is_overdue(self, file_id: str, before: float) -> bool:
        """Tell whether nobody has tried since; a file whose mark is gone was settled, and nobody tries any more."""
        made_at = await self._blobs.changed_at(self._paths.unrecorded_mark(file_id))
        return made_at is None or made_at < before
