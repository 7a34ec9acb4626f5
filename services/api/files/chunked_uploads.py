"""Files that come in parts: parts in the store, in any order and at once, put together by one pass at the end.

Completing is the same once and twice: the file's id is chosen at the start, its folder appears by one rename, and of
completing and cancelling at the same time one wins. Those who complete the same upload take turns, under a lock.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import structlog
from litestar.connection import Request

from services.api.files.forms import PART_FORM
from services.api.files.multipart_form import receive_form
from services.api.files.names import safe_name
from services.api.files.partial import PartialFile
from services.api.files.unrecorded import Unrecorded
from services.api.files.uploads import kept_for, least_size
from shared import ids
from shared.blobs.interface import Blobs, read_whole
from shared.errors import Conflict, InvalidRequest, NotFound, RateLimited, StoreUnavailable, TooLarge, Unavailable
from shared.records import FileRecord
from shared.schemas.uploads import MAX_PART_BYTES, CompleteUpload, CreateUpload, Upload
from shared.settings import Settings
from shared.store.files import FileStore
from shared.store.lock import run_under
from shared.store.uploads import PartRecord, UploadRecord, UploadStore

_LOCK_TTL_S = 30.0
_RENEW_S = 5.0
_POLL_S = 0.2
_TURN_WITHIN_S = 60.0
"""How long a request waits while another one completes the same upload."""

_log = structlog.get_logger()


class ChunkedUploads:
    """Takes parts and makes files of them."""

    def __init__(self, uploads: UploadStore, files: FileStore, blobs: Blobs, settings: Settings) -> None:
        self._uploads = uploads
        self._files = files
        self._blobs = blobs
        self._paths = blobs.paths
        self._settings = settings
        self._unrecorded = Unrecorded(blobs)

    async def begin(self, wanted: CreateUpload, *, project: str) -> Upload:
        """Announce a file. Raises TooLarge."""
        if wanted.bytes > self._settings.max_file_bytes:
            raise TooLarge(
                f"The file is larger than the {self._settings.max_file_bytes:,} bytes that this server accepts.",
                param="bytes",
            )
        now = int(time.time())
        record = UploadRecord(
            id=ids.new_upload_id(),
            project=project,
            filename=safe_name(wanted.filename),
            purpose=wanted.purpose,
            size_bytes=wanted.bytes,
            created_at=now,
            expires_at=now + self._settings.upload_ttl_s,
            file_id=ids.new_file_id(),
            file_lifetime_s=wanted.expires_after.seconds if wanted.expires_after else None,
        )
        await self._files.check_room(project, record.size_bytes)
        await self._uploads.add(record)
        return record.public()

    async def add_part(self, request: Request[Any, Any, Any], upload_id: str, *, project: str) -> PartRecord:
        """Store a part.

        Raises NotFound, InvalidRequest for an upload that has ended, TooLarge, ClientGone, RateLimited when the project
        has no room.
        """
        record = await self._pending(upload_id, project)
        await self._files.check_room(project, least_size(request))
        part_id = ids.new_part_id()
        partial = PartialFile(self._paths.partial / part_id, limit=MAX_PART_BYTES, param="data")
        try:
            await receive_form(request, PART_FORM, partial, limit=MAX_PART_BYTES)
            part = PartRecord(
                id=part_id, upload_id=upload_id, size_bytes=partial.size_bytes, created_at=int(time.time())
            )
            await partial.publish(self._blobs, self._paths.upload_part(upload_id, part_id), msgspec.json.encode(part))
            await self._uploads.add_part(record, part)
        except BaseException:
            await asyncio.to_thread(partial.discard)
            await self._remove(self._paths.upload_part(upload_id, part_id))
            raise
        return part

    async def complete(self, upload_id: str, wanted: CompleteUpload, *, project: str) -> Upload:
        """Put the parts together in the given order; a completed upload comes back as it is.

        Raises NotFound, InvalidRequest for parts that do not make the file, Conflict when it was cancelled meanwhile or
        another request has been completing it for a minute, RateLimited when the project has no room.
        """
        record = await self._uploads.get(upload_id, project=project)
        if record.status != "completed":
            _check_pending(record)
            record = await self._make_alone(record, wanted)
        await self._remove(self._paths.upload_folder(upload_id))
        return record.public(await self._file(record))

    async def _make_alone(self, record: UploadRecord, wanted: CompleteUpload) -> UploadRecord:
        """Make the file while no other request does."""
        lock = self._uploads.completing(record.id, ttl_s=_LOCK_TTL_S)
        give_up_at = time.monotonic() + _TURN_WITHIN_S
        while not await lock.hold():
            if time.monotonic() > give_up_at:
                raise Conflict(f"Upload {record.id} is being completed by another request.")
            await asyncio.sleep(_POLL_S)
        try:
            current = await self._uploads.get(record.id, project=record.project)
            if current.status == "completed":
                return current
            _check_pending(current)
            return await run_under(lock.hold, self._make(current, wanted), renew_s=_RENEW_S)
        finally:
            with suppress(StoreUnavailable):
                await lock.release()

    async def _make(self, record: UploadRecord, wanted: CompleteUpload) -> UploadRecord:
        """Make the file and end the upload, unless another request has ended it meanwhile."""
        sources = await self._ordered(record, wanted.part_ids)
        try:
            await self._assemble(record, sources, wanted.md5)
        except FileNotFoundError as error:  # the parts go when an upload has ended
            ended = await self._uploads.get(record.id, project=record.project)
            if ended.status != "completed":
                raise Conflict(f"Upload {record.id} has ended meanwhile.") from error
            return ended
        ended = await self._uploads.end(record, "completed")
        if ended.status != "completed":
            await self._take_back(ended)
            raise Conflict(f"Upload {record.id} was cancelled while it was being completed.")
        _log.info("upload.completed", upload_id=record.id, file_id=record.file_id)
        return ended

    async def cancel(self, upload_id: str, *, project: str) -> Upload:
        """Give an upload up; twice is the same as once. Raises NotFound, InvalidRequest for one that was completed."""
        record = await self._uploads.get(upload_id, project=project)
        if record.status == "pending":
            _check_pending(record)
            record = await self._uploads.end(record, "cancelled")
        if record.status == "completed":
            raise InvalidRequest(
                f"Upload {upload_id} is completed; delete its file instead.", code="upload_not_pending"
            )
        await self._take_back(record)  # of a completion whose last step the database did not take
        await self._remove(self._paths.upload_folder(upload_id))
        return record.public()

    async def _pending(self, upload_id: str, project: str) -> UploadRecord:
        record = await self._uploads.get(upload_id, project=project)
        _check_pending(record)
        return record

    async def _ordered(self, record: UploadRecord, part_ids: Sequence[str]) -> list[Path]:
        """Return the parts' files in order. Raises InvalidRequest when they do not make what was announced."""
        known = await self._uploads.parts(record.id)
        for place, part_id in enumerate(part_ids):
            if part_id not in known:
                _refuse(f"part_ids[{place}]", f"upload {record.id} has no part '{part_id[:128]}'")
        if len(set(part_ids)) != len(part_ids):
            _refuse("part_ids", "a part is named twice")
        total = sum(known[part_id].size_bytes for part_id in part_ids)
        if total != record.size_bytes:
            _refuse("part_ids", f"the parts have {total:,} bytes together, {record.size_bytes:,} were announced")
        return [self._paths.upload_part(record.id, part_id) / "content" for part_id in part_ids]

    async def _assemble(self, record: UploadRecord, sources: Sequence[Path], md5: str | None) -> None:
        """Make the file: bytes first, then its record.

        Raises InvalidRequest for a wrong MD5, FileNotFoundError when the upload has ended meanwhile, Unavailable,
        Conflict when somebody else made another file.
        """
        partial = PartialFile(
            self._paths.partial / f"{record.file_id}.{secrets.token_hex(4)}", limit=self._settings.max_file_bytes
        )
        try:
            await self._copy(sources, partial, md5)
            now = int(time.time())
            lifetime = kept_for(record.purpose, record.file_lifetime_s)
            file = FileRecord(
                id=record.file_id,
                project=record.project,
                filename=record.filename,
                purpose=record.purpose,
                size_bytes=partial.size_bytes,
                sha256=partial.sha256,
                created_at=now,
                expires_at=None if lifetime is None else now + lifetime,
            )
            await self._unrecorded.mark(file.id)
            await partial.publish(self._blobs, self._paths.file_folder(file.id), msgspec.json.encode(file))
            file = await self._published(file)
        finally:
            await asyncio.to_thread(partial.discard)
        try:
            await self._files.add(file, upload_id=record.id)
        except RateLimited:
            if await self._file(record) is None:
                await self._remove(self._paths.file_folder(file.id))
            raise
        await self._unrecorded.settle(file.id)

    async def _published(self, file: FileRecord) -> FileRecord:
        """Return what lies in the place of a file that was just published: whoever came first has made it.

        Raises Conflict when that has other bytes, FileNotFoundError when it was taken back, Unavailable.
        """
        try:
            raw = await read_whole(self._blobs, self._paths.file_folder(file.id) / "manifest.json")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise Unavailable("The server's storage does not answer.", code="storage_unavailable") from error
        found = msgspec.json.decode(raw, type=FileRecord)
        if found.sha256 != file.sha256:
            raise Conflict("The upload was completed before with other parts, or in another order; start a new one.")
        return found

    async def _take_back(self, record: UploadRecord) -> None:
        # A process that dies in between leaves a file with a mark, which is deleted later.
        await self._unrecorded.mark(record.file_id)
        file = await self._file(record)
        if file is not None:
            await self._files.remove(file)
        await self._remove(self._paths.file_folder(record.file_id))
        await self._unrecorded.settle(record.file_id)

    async def _file(self, record: UploadRecord) -> FileRecord | None:
        """Return the upload's file, or None once it has been deleted."""
        try:
            return await self._files.get(record.file_id, project=record.project)
        except NotFound:
            return None

    async def _copy(self, sources: Sequence[Path], target: PartialFile, md5: str | None) -> None:
        digest = hashlib.md5(usedforsecurity=False)
        for source in sources:
            async for block in (await self._blobs.read(source)).blocks:
                await target.write(block)
                if md5 is not None:
                    await asyncio.to_thread(digest.update, block)
        await target.finish()
        if md5 is not None and digest.hexdigest() != md5.lower():
            _refuse("md5", f"the parts have {digest.hexdigest()}", code="checksum_mismatch")

    async def _remove(self, folder: Path) -> None:
        try:
            await self._blobs.remove(folder)
        except OSError as error:
            raise Unavailable("The server's storage does not answer.", code="storage_unavailable") from error


def _check_pending(record: UploadRecord) -> None:
    status = record.public().status
    if status != "pending":
        raise InvalidRequest(f"Upload {record.id} is {status}; start a new one.", code="upload_not_pending")


def _refuse(param: str, reason: str, *, code: str = "invalid_value") -> None:
    raise InvalidRequest(f"Invalid value for '{param}': {reason}.", code=code, param=param)
