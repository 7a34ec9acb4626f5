"""Results made into files that their owner can list and download, once."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import Iterator

import msgspec
import structlog

from services.api.batches.results import Results
from services.api.files.partial import PartialFile
from shared.batch_records import BatchRecord
from shared.blobs.interface import Blobs, read_whole
from shared.records import FileRecord
from shared.store.files import FileStore

_log = structlog.get_logger()

_BLOCK_BYTES = 1 << 20
_decode = msgspec.json.Decoder(FileRecord).decode


class OutputFiles:
    """Publishes output and error file under the ids that the batch's record has for them."""

    def __init__(self, files: FileStore, blobs: Blobs) -> None:
        self._files = files
        self._blobs = blobs
        self._paths = blobs.paths

    async def publish(self, record: BatchRecord, results: Results) -> tuple[str | None, str | None]:
        """Return the ids of output and error file, None for one that would be empty. Twice is the same as once.

        Raises StoreUnavailable, Unavailable.
        """
        output = await self._publish(record, results, failed=False) if results.completed else None
        error = await self._publish(record, results, failed=True) if results.failed else None
        return output, error

    async def _publish(self, record: BatchRecord, results: Results, *, failed: bool) -> str:
        file_id = record.planned_error if failed else record.planned_output
        folder = self._paths.file_folder(file_id)
        if not await self._blobs.exists(folder):
            await self._write(record, results, file_id, failed=failed)
        # Read back: if an earlier attempt has come so far, its file is the one that counts.
        manifest = await read_whole(self._blobs, folder / "manifest.json")
        await self._files.add(_decode(manifest), produced=True)
        _log.info("batch.file", batch_id=record.id, file_id=file_id, failed=failed)
        return file_id

    async def _write(self, record: BatchRecord, results: Results, file_id: str, *, failed: bool) -> None:
        partial = PartialFile(self._paths.partial / f"{file_id}.{secrets.token_hex(4)}", limit=sys.maxsize)
        lines = results.lines(failed=failed)
        try:
            while block := await asyncio.to_thread(_take, lines):
                await partial.write(block)
            await partial.finish()
            file = _record(record, file_id, partial, failed=failed)
            manifest = msgspec.json.format(msgspec.json.encode(file))
            await partial.publish(self._blobs, self._paths.file_folder(file_id), manifest)
        finally:
            await asyncio.to_thread(partial.discard)


def _take(lines: Iterator[bytes]) -> bytes:
    block = bytearray()
    while len(block) < _BLOCK_BYTES and (line := next(lines, b"")):
        block += line
    return bytes(block)


def _record(record: BatchRecord, file_id: str, partial: PartialFile, *, failed: bool) -> FileRecord:
    now = int(time.time())
    return FileRecord(
        id=file_id,
        project=record.project,
        filename=f"{record.id}_{'error' if failed else 'output'}.jsonl",
        purpose="batch_output",
        size_bytes=partial.size_bytes,
        sha256=partial.sha256,
        created_at=now,
        expires_at=None if record.output_lifetime_s is None else now + record.output_lifetime_s,
    )
