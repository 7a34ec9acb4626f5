"""Files that the server makes for their owner to list and download, each once."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import Iterator

import msgspec

from services.api.files.partial import PartialFile
from shared.blobs.interface import Blobs, read_whole
from shared.records import FileRecord
from shared.schemas.files import FilePurpose
from shared.store.files import FileStore

_BLOCK_BYTES = 1 << 20
_decode = msgspec.json.Decoder(FileRecord).decode


class ProducedFiles:
    """Publishes files under ids that were chosen before. Such a file is kept whether its project has room or not."""

    def __init__(self, files: FileStore, blobs: Blobs) -> None:
        self._files = files
        self._blobs = blobs
        self._paths = blobs.paths

    async def publish(
        self,
        file_id: str,
        lines: Iterator[bytes],
        *,
        project: str,
        filename: str,
        purpose: FilePurpose,
        lifetime_s: int | None = None,
    ) -> FileRecord:
        """Make a file of lines, unless it is there. Twice is the same as once, whatever the lines are by then.

        `lines` is read in a thread. Raises StoreUnavailable, Unavailable.
        """
        folder = self._paths.file_folder(file_id)
        if not await self._blobs.exists(folder):
            partial = PartialFile(self._paths.partial / f"{file_id}.{secrets.token_hex(4)}", limit=sys.maxsize)
            try:
                while block := await asyncio.to_thread(_take, lines):
                    await partial.write(block)
                await partial.finish()
                now = int(time.time())
                file = FileRecord(
                    id=file_id,
                    project=project,
                    filename=filename,
                    purpose=purpose,
                    size_bytes=partial.size_bytes,
                    sha256=partial.sha256,
                    created_at=now,
                    expires_at=None if lifetime_s is None else now + lifetime_s,
                )
                await partial.publish(self._blobs, folder, msgspec.json.format(msgspec.json.encode(file)))
            finally:
                await asyncio.to_thread(partial.discard)
        # Read back: if an earlier attempt has come so far, its file is the one that counts.
        record = _decode(await read_whole(self._blobs, folder / "manifest.json"))
        await self._files.add(record, produced=True)
        return record


def _take(lines: Iterator[bytes]) -> bytes:
    block = bytearray()
    while len(block) < _BLOCK_BYTES and (line := next(lines, b"")):
        block += line
    return bytes(block)
