"""Records of uploaded files; their bytes lie in the data folder."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from shared import keys
from shared.errors import NotFound, RateLimited
from shared.projects import ProjectRecord
from shared.records import FileRecord
from shared.store import index
from shared.store.client import Client

_decode = msgspec.json.Decoder(FileRecord).decode
_decode_project = msgspec.json.Decoder(ProjectRecord).decode
_encode = msgspec.json.Encoder().encode

_NO_ROOM = -1
_NEVER_COUNTED = -2


class FileStore:
    """Files by id and by project, newest first.

    `project_bytes` is the storage limit of projects that have none of their own, 0 for no limit; without it, files are
    counted but never refused.
    """

    def __init__(self, client: Client, *, project_bytes: int | None = None) -> None:
        self._client = client
        self._project_bytes = project_bytes

    async def add(self, record: FileRecord, *, produced: bool = False) -> None:
        """Make a file visible; its bytes must be in place. Calling it twice is the same as once.

        Raises RateLimited when the project has no room for it, unless the server itself `produced` it: what a job or a
        batch has worked for is not lost.
        """
        await self._note_expiry(record)
        limit = -1 if produced or self._project_bytes is None else self._project_bytes
        outcome = await self._add(record, limit)
        if outcome == _NEVER_COUNTED:
            await self.used_bytes(record.project)
            outcome = await self._add(record, limit)
        if outcome == _NO_ROOM:
            raise _no_room(record.size_bytes)

    async def check_room(self, project: str, size_bytes: int) -> None:
        """Raises RateLimited when `size_bytes` more would not fit now; `add` decides."""
        if self._project_bytes is None:
            return
        raw = await self._client.call("GET", keys.project(project))
        own = _decode_project(raw).limits.storage_bytes if raw is not None else None
        limit = self._project_bytes if own is None else own
        if limit and await self.used_bytes(project) + size_bytes > limit:
            raise _no_room(size_bytes)

    async def used_bytes(self, project: str) -> int:
        """Return the sum of the sizes of a project's files."""
        found = [keys.files(project), keys.project_bytes(project)]
        return int(await self._client.script("count_files", found, [keys.file("")]))

    async def _add(self, record: FileRecord, limit: int) -> int:
        outcome = await self._client.script(
            "add_file",
            [
                keys.file(record.id),
                keys.files(record.project),
                keys.project_bytes(record.project),
                keys.SEQUENCE,
                keys.project(record.project),
            ],
            [record.id, _encode(record), record.size_bytes, limit],
        )
        return int(outcome)

    async def get(self, file_id: str, *, project: str | None = None) -> FileRecord:
        """Raises NotFound when it is unknown, has expired, or belongs to another project than `project`."""
        raw = await self._client.call("GET", keys.file(file_id))
        record = _decode(raw) if raw is not None else None
        if record is None or record.expired(time.time()) or (project is not None and record.project != project):
            raise NotFound(f"No such File object: {file_id}", param="id")
        return record

    async def list(
        self, project: str, *, after: str | None, limit: int, purpose: str | None = None, newest_first: bool = True
    ) -> tuple[Sequence[FileRecord], bool]:
        """Return a page and whether there are more; `purpose` filters before the page is cut."""
        found: list[FileRecord] = []
        now = time.time()
        more = True
        while more and len(found) <= limit:
            ids, more = await index.page(
                self._client, keys.files(project), after=after, limit=max(limit, 100), newest_first=newest_first
            )
            after = ids[-1] if ids else after
            raws = await self._client.call("MGET", *map(keys.file, ids)) if ids else []
            records = (_decode(raw) for raw in raws if raw is not None)
            found += [record for record in records if purpose in (None, record.purpose) and not record.expired(now)]
        return found[:limit], len(found) > limit

    async def expired(self, now: float, *, limit: int) -> Sequence[FileRecord]:
        """List files that are past their time at `now` and have not been removed yet."""
        found = await self._client.call("ZRANGE", keys.EXPIRING_FILES, "-inf", now, "BYSCORE", "LIMIT", 0, limit)
        ids = [member.decode() for member in found]
        raws = await self._client.call("MGET", *map(keys.file, ids)) if ids else []
        gone = [file_id for file_id, raw in zip(ids, raws, strict=True) if raw is None]
        if gone:
            await self._client.call("ZREM", keys.EXPIRING_FILES, *gone)
        return [_decode(raw) for raw in raws if raw is not None]

    async def _note_expiry(self, record: FileRecord) -> None:
        """Remember when a file expires; before the file exists, so that none is forgotten."""
        if record.expires_at is not None:
            await self._client.call("ZADD", keys.EXPIRING_FILES, record.expires_at, record.id)

    async def remove(self, record: FileRecord) -> bool:
        """Forget a file; False if somebody was faster. The caller removes the bytes afterwards."""
        found = [
            keys.file(record.id),
            keys.files(record.project),
            keys.project_bytes(record.project),
            keys.EXPIRING_FILES,
        ]
        places = keys.place(keys.files(record.project), "")
        return bool(await self._client.script("remove_file", found, [record.id, record.size_bytes, places]))


def _no_room(size_bytes: int) -> RateLimited:
    return RateLimited(
        f"The project's storage has no room for {size_bytes:,} bytes more; delete files, or have its limit raised.",
        code="storage_limit_exceeded",
    )
