"""Uploads: multipart stream → partial folder → hash → store (fsync and rename, or an object store) → record.

A file is visible when its record is; its bytes are whole and kept before that. Whatever ends an upload early leaves
nothing behind.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import structlog
from litestar.connection import Request

from services.api.files.forms import FILE_FORM, lifetime_of, purpose_of
from services.api.files.multipart_form import receive_form
from services.api.files.names import safe_name
from services.api.files.partial import PartialFile
from services.api.files.unrecorded import Unrecorded
from shared import ids
from shared.blobs.interface import Blobs
from shared.errors import RateLimited, StorageUnavailable, Unavailable
from shared.records import FileRecord
from shared.schemas.files import FilePurpose
from shared.store.files import FileStore
from shared.token_cache import forget_file

_log = structlog.get_logger()

_FRAMING_BYTES = 1 << 20
"""Room for boundaries, headers and the small fields beside the file."""
_BATCH_LIFETIME_S = 30 * 86_400


class Uploads:
    """Takes files in and lets them go."""

    def __init__(self, files: FileStore, blobs: Blobs, *, max_file_bytes: int) -> None:
        self._files = files
        self._blobs = blobs
        self._paths = blobs.paths
        self._unrecorded = Unrecorded(blobs)
        self._max_file_bytes = max_file_bytes

    async def receive(self, request: Request[Any, Any, Any], *, project: str) -> FileRecord:
        """Store the file of a multipart form.

        Raises InvalidRequest, TooLarge, ClientGone, StoreUnavailable, RateLimited when the project has no room.
        """
        await self._files.check_room(project, least_size(request))
        file_id = ids.new_file_id()
        partial = PartialFile(self._paths.partial / file_id, limit=self._max_file_bytes)
        try:
            form = await receive_form(request, FILE_FORM, partial, limit=self._max_file_bytes)
            purpose = purpose_of(form.fields["purpose"])
            lifetime = kept_for(purpose, lifetime_of(form))
            record = _record(file_id, project, form.filename, purpose, lifetime, partial)
            await self._publish(record, partial)
        except BaseException:
            await asyncio.to_thread(partial.discard)
            raise
        return await self._add(record)

    async def store(
        self, blocks: AsyncIterator[bytes], *, project: str, filename: str, purpose: FilePurpose, lifetime_s: int
    ) -> FileRecord:
        """Store a file that this server makes itself. Raises as receive() does, and what `blocks` raises."""
        file_id = ids.new_file_id()
        partial = PartialFile(self._paths.partial / file_id, limit=self._max_file_bytes)
        try:
            async for block in blocks:
                await partial.write(block)
            await partial.finish()
            record = _record(file_id, project, filename, purpose, lifetime_s, partial)
            await self._publish(record, partial)
        except BaseException:
            await asyncio.to_thread(partial.discard)
            raise
        return await self._add(record)

    async def _publish(self, record: FileRecord, partial: PartialFile) -> None:
        await self._unrecorded.mark(record.id)
        manifest = msgspec.json.format(msgspec.json.encode(record))
        await partial.publish(self._blobs, self._paths.file_folder(record.id), manifest)

    async def _add(self, record: FileRecord) -> FileRecord:
        """Record a file whose bytes are kept."""
        # If this fails the bytes stay, since the record may have been written although its answer was lost, and the
        # sweeper finds out; unless the project has no room, for then it was not.
        try:
            await self._files.add(record)
        except RateLimited:
            await self._remove_bytes(record.id)
            raise
        await self._unrecorded.settle(record.id)
        _log.info("file.stored", file_id=record.id, size_bytes=record.size_bytes, purpose=record.purpose)
        return record

    async def remove(self, file_id: str, *, project: str) -> None:
        """Forget a file, then delete its bytes. Raises NotFound."""
        await self.delete(await self._files.get(file_id, project=project))

    async def delete(self, record: FileRecord) -> None:
        """Delete a file whose record is known; twice is the same as once."""
        # A process that dies in between leaves a file with a mark, which is deleted later and never recorded again.
        try:
            await self._unrecorded.mark(record.id)
        except StorageUnavailable:  # nothing would delete the bytes later
            raise
        except Unavailable:  # a full disk; the deletion makes room
            pass
        await self._files.remove(record)
        await self._remove_bytes(record.id)
        # Last: who tokenises it just now looks afterwards whether it is still there.
        await asyncio.to_thread(forget_file, self._paths.tokens, record.sha256)
        _log.info("file.deleted", file_id=record.id)

    async def _remove_bytes(self, file_id: str) -> None:
        """Delete a file that has no record; what cannot be deleted now keeps its mark, and the sweeper does it."""
        try:
            await self._blobs.remove(self._paths.file_folder(file_id))
        except (StorageUnavailable, OSError):
            _log.warning("file.left_to_sweeper", file_id=file_id)
        else:
            await self._unrecorded.settle(file_id)

    def discard_abandoned(self, *, before: float) -> None:
        """Delete partial uploads that nobody has written to since `before` (Unix time): their process died."""
        for folder in self._paths.partial.iterdir():
            written_at = _last_write(folder)
            if written_at is not None and written_at < before:
                shutil.rmtree(folder, ignore_errors=True)
                _log.info("upload.abandoned", file_id=folder.name)


def _last_write(folder: Path) -> float | None:
    """Return the Unix time; None when the folder is on its way, renamed or deleted at this moment."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.glob("*")))
    except FileNotFoundError:
        return None


def least_size(request: Request[Any, Any, Any]) -> int:
    """Return how many bytes the file or part must have at least, going by the announced size of the body."""
    announced = request.headers.get("content-length", "")
    known = announced.isascii() and announced.isdigit() and len(announced) < 20
    return max(1, int(announced) - _FRAMING_BYTES) if known else 1


def _record(
    file_id: str, project: str, filename: str, purpose: FilePurpose, lifetime_s: int | None, content: PartialFile
) -> FileRecord:
    now = int(time.time())
    return FileRecord(
        id=file_id,
        project=project,
        filename=safe_name(filename),
        purpose=purpose,
        size_bytes=content.size_bytes,
        sha256=content.sha256,
        created_at=now,
        expires_at=None if lifetime_s is None else now + lifetime_s,
    )


def kept_for(purpose: FilePurpose, asked_s: int | None) -> int | None:
    """Return how long a new file is kept, in seconds; None is for ever. Batches go after thirty days, as at OpenAI."""
    return asked_s or (_BATCH_LIFETIME_S if purpose == "batch" else None)
