"""A file on its way: written to disk in large pieces in a thread, hashed, bounded, published whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from pathlib import Path
from typing import BinaryIO

from services.api import metrics
from shared.blobs.interface import Blobs
from shared.errors import TooLarge, Unavailable
from shared.paths import write_atomic

_BATCH_BYTES = 1 << 20


class PartialFile:
    """A folder with `content` in it, that becomes another folder by one rename.

    `limit` is in bytes; `param` is the field that brings the content, for the error when it is too much.
    """

    def __init__(self, folder: Path, *, limit: int, param: str = "file") -> None:
        self._folder = folder
        self._limit = limit
        self._param = param
        self._buffer = bytearray()
        self._hash = hashlib.sha256()
        self._handle: BinaryIO | None = None
        self.size_bytes = 0

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    async def write(self, data: bytes | bytearray) -> None:
        """Append. Raises TooLarge beyond the limit, Unavailable when the disk does not take it."""
        self.size_bytes += len(data)
        if self.size_bytes > self._limit:
            raise TooLarge(
                f"The file is larger than the {self._limit:,} bytes that this server accepts.", param=self._param
            )
        metrics.UPLOADED_BYTES.inc(len(data))
        self._buffer += data
        if len(self._buffer) >= _BATCH_BYTES:
            await self._flush()

    async def finish(self) -> None:
        """Write what is left; size and hash are final now."""
        await self._flush()

    async def publish(self, blobs: Blobs, final: Path, manifest: bytes) -> None:
        """Put `manifest` beside the content, and have both kept in the folder `final`. Raises Unavailable."""
        try:
            await asyncio.to_thread(self._complete, manifest)
            await blobs.publish(self._folder, final)
        except OSError as error:
            raise Unavailable("The server's storage does not take the file.", code="storage_unavailable") from error

    def discard(self) -> None:
        """Leave nothing behind; does no harm after publish()."""
        if self._handle is not None:
            self._handle.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _flush(self) -> None:
        batch, self._buffer = self._buffer, bytearray()
        await asyncio.to_thread(self._write, batch)

    def _write(self, batch: bytearray) -> None:
        try:
            if self._handle is None:
                self._folder.mkdir(parents=True)
                self._handle = (self._folder / "content").open("xb", buffering=0)
            self._hash.update(batch)
            view = memoryview(batch)
            while view:  # an unbuffered write may take only a part
                view = view[self._handle.write(view) :]
        except OSError as error:
            raise Unavailable("The server's storage does not take the file.", code="storage_unavailable") from error

    def _complete(self, manifest: bytes) -> None:
        if self._handle is not None:
            self._handle.close()
        write_atomic(self._folder / "manifest.json", manifest)
