"""Records of uploaded files; their bytes lie in the data folder."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from shared import keys
from shared.errors import NotFound
from shared.records import FileRecord
from shared.store import index
from shared.store.client import Argument, Client
from shared.store.storage import Storage

_decode = msgspec.json.Decoder(FileRecord).decode
_encode = msgspec.json.Encoder().encode


class FileStore:
    """Files by id and by project, newest first.

    `project_bytes` is the storage limit of projects that have none of their own, 0 for no limit; without it, files are
    counted but never refused.
    """

    def __init__(self, client: Client, *, project_bytes: int | None = None) -> None:
        self._client = client
        self._storage = Storage(client, project_bytes=project_bytes)

    async def add(self, record: FileRecord, *, produced: bool = False, upload_id: str | None = None) -> None:
        """Make a file visible; its bytes must be in place. Calling it twice is the same as once.

        From then on it counts instead of the parts of the upload that it was made of. Raises RateLimited when the
        project has no room for it, unless the server itself `produced` it: what a job or a batch has worked for is not
        lost.
        """
        await self._note_expiry(record)
        found = [
            keys.file(record.id),
            keys.files(record.project),
            keys.project_bytes(record.project),
            keys.SEQUENCE,
            keys.project(record.project),
            keys.file_batches(record.id),
            *([keys.upload(upload_id)] if upload_id else []),
        ]

        async def attempt(limit: int) -> int:
            arguments: list[Argument] = [record.id, _encode(record), record.size_bytes, limit]
            return int(await self._client.script("add_file", found, arguments))

        await self._storage.claim(record.project, record.size_bytes, attempt, limited=not produced)

    async def check_room(self, project: str, size_bytes: int) -> None:
        """Raises RateLimited when `size_bytes` more would not fit now; `add` decides."""
        await self._storage.check_room(project, size_bytes)

    async def used_bytes(self, project: str) -> int:
        """Return how many bytes the project keeps."""
        return await self._storage.used_bytes(project)

    async def exists(self, file_id: str) -> bool:
        """Tell whether a file has a record, even one that has expired."""
        return bool(await self._client.call("EXISTS", keys.file(file_id)))

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
        """Forget a file; False if somebody was faster. The caller removes the bytes afterwards.

        It counts until the last batch that has it as its input has ended.
        """
        found = [
            keys.file(record.id),
            keys.files(record.project),
            keys.project_bytes(record.project),
            keys.EXPIRING_FILES,
            keys.file_batches(record.id),
        ]
        places = keys.place(keys.files(record.project), "")
        return bool(await self._client.script("remove_file", found, [record.id, record.size_bytes, places]))
