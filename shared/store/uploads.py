"""Uploads under way: what was announced, which parts are there, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, Struct
from msgspec.structs import replace

from shared import keys
from shared.errors import InvalidRequest, NotFound
from shared.records import FileRecord
from shared.schemas.files import FilePurpose
from shared.schemas.uploads import MAX_PART_BYTES, Upload, UploadPart
from shared.store.client import Argument, Client
from shared.store.lock import Lock
from shared.store.storage import Storage

Outcome = Literal["completed", "cancelled"]


class UploadRecord(Struct, frozen=True, kw_only=True):
    """An upload as it is stored."""

    id: str
    project: str
    filename: str
    purpose: FilePurpose
    size_bytes: int
    created_at: int
    expires_at: int
    file_id: str
    """Id of the file to be, chosen at the start: completing twice makes one file."""
    file_lifetime_s: int | None = None
    status: Literal["pending", "completed", "cancelled"] = "pending"

    def public(self, file: FileRecord | None = None) -> Upload:
        is_late = self.status == "pending" and self.expires_at <= time.time()
        return Upload(
            id=self.id,
            bytes=self.size_bytes,
            created_at=self.created_at,
            expires_at=self.expires_at,
            filename=self.filename,
            purpose=self.purpose,
            status="expired" if is_late else self.status,
            file=file.public() if file else UNSET,
        )


class PartRecord(Struct, frozen=True, kw_only=True):
    """A part whose bytes lie in `Paths.upload_part(upload_id, id)`."""

    id: str
    upload_id: str
    size_bytes: int
    created_at: int

    def public(self) -> UploadPart:
        return UploadPart(id=self.id, created_at=self.created_at, upload_id=self.upload_id)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(UploadRecord).decode
_decode_part = msgspec.json.Decoder(PartRecord).decode


class UploadStore:
    """Uploads by id. Their end is compare-and-set: of completing and cancelling at once, one wins.

    Parts count towards the project's storage until then; `project_bytes` is its default limit, as for files.
    """

    def __init__(self, client: Client, *, project_bytes: int | None = None) -> None:
        self._client = client
        self._storage = Storage(client, project_bytes=project_bytes)

    async def add(self, record: UploadRecord) -> None:
        await self._client.together(
            [
                ("HSET", keys.upload(record.id), "record", _encode(record), "received", 0),
                ("ZADD", keys.UPLOADS, record.expires_at, record.id),
            ]
        )

    async def get(self, upload_id: str, *, project: str) -> UploadRecord:
        """Raises NotFound when it is unknown or belongs to another project."""
        raw = await self._client.call("HGET", keys.upload(upload_id), "record")
        record = _decode(raw) if raw is not None else None
        if record is None or record.project != project:
            raise _unknown(upload_id)
        return record

    async def add_part(self, record: UploadRecord, part: PartRecord) -> None:
        """Make a part known.

        Parts may be sent again, so that up to twice the announced size is taken, and one part more. Raises
        InvalidRequest when the upload has ended, or has received too much by now, and RateLimited when the project has
        no room.
        """
        found = [
            keys.upload(record.id),
            keys.upload_parts(record.id),
            keys.UPLOADS,
            keys.project_bytes(record.project),
            keys.project(record.project),
        ]
        most_bytes = 2 * record.size_bytes + MAX_PART_BYTES

        async def attempt(limit: int) -> int:
            arguments: list[Argument] = [part.id, _encode(part), part.size_bytes, most_bytes, record.id, limit]
            return int(await self._client.script("add_part", found, arguments))

        outcome = await self._storage.claim(record.project, part.size_bytes, attempt)
        if outcome == -3:
            raise _unknown(record.id)
        if outcome == 0:
            raise InvalidRequest(f"Upload {record.id} has ended; it takes no more parts.", code="upload_not_pending")
        if outcome == -4:
            raise InvalidRequest(
                f"Upload {record.id} has received far more than the {record.size_bytes:,} bytes that were announced.",
                code="upload_too_large",
                param="data",
            )

    def completing(self, upload_id: str, *, ttl_s: float) -> Lock:
        """Return the lock of whoever completes it: two at once would put different bytes in the same place."""
        return Lock(self._client, keys.upload_lock(upload_id), ttl_s=ttl_s)

    async def parts(self, upload_id: str) -> dict[str, PartRecord]:
        """Return the parts that are there, by id."""
        found = await self._client.call("HVALS", keys.upload_parts(upload_id))
        return {part.id: part for part in map(_decode_part, found)}

    async def end(self, record: UploadRecord, outcome: Outcome) -> UploadRecord:
        """Bring a pending upload to its end; one that has ended already comes back as it is."""
        found = [keys.upload(record.id), keys.project_bytes(record.project)]
        raw = await self._client.script("end_upload", found, [_encode(replace(record, status=outcome))])
        if raw is None:
            raise _unknown(record.id)
        return _decode(raw)

    async def overdue(self, now: float, *, limit: int) -> Sequence[str]:
        """List uploads whose time is over, whether they were completed or not."""
        found = await self._client.call("ZRANGE", keys.UPLOADS, "-inf", now, "BYSCORE", "LIMIT", 0, limit)
        return [member.decode() for member in found]

    async def forget_parts(self, upload_id: str) -> None:
        """Drop what is known of the parts; the upload itself stays readable for a day."""
        raw = await self._client.call("HGET", keys.upload(upload_id), "record")
        project = _decode(raw).project if raw is not None else ""
        found = [keys.upload(upload_id), keys.upload_parts(upload_id), keys.UPLOADS, keys.project_bytes(project)]
        await self._client.script("forget_parts", found, [upload_id, _READABLE_S])


_READABLE_S = 86_400


def _unknown(upload_id: str) -> NotFound:
    return NotFound(f"No such Upload object: {upload_id}", param="upload_id")
