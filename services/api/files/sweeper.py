"""Housekeeping, on disk and in the audit log: what has expired, was given up, or was left by a process that died."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from services.api.audit import trail
from services.api.files.unrecorded import Unrecorded
from services.api.files.uploads import Uploads
from shared.blobs.interface import Blobs
from shared.errors import StorageUnavailable, StoreUnavailable
from shared.store.audit import AuditStore
from shared.store.files import FileStore
from shared.store.uploads import UploadStore

_log = structlog.get_logger()

_PERIOD_S = 60.0
_AT_ONCE = 100
_ABANDONED_S = 3600
"""A partial file that nobody has written to for so long belongs to a process that is gone."""


class Sweeper:
    """Sweeps at start and every minute. Safe with several processes: each step may be done twice."""

    def __init__(
        self, files: FileStore, uploads: UploadStore, storage: Uploads, blobs: Blobs, audit: AuditStore
    ) -> None:
        self._files = files
        self._uploads = uploads
        self._storage = storage
        self._blobs = blobs
        self._paths = blobs.paths
        self._unrecorded = Unrecorded(blobs)
        self._audit = audit
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._sweep_forever())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def sweep(self, now: float) -> None:
        """Delete what is over at `now` (Unix time). Raises StoreUnavailable, StorageUnavailable."""
        await asyncio.to_thread(self._storage.discard_abandoned, before=now - _ABANDONED_S)
        for file_id in await self._unrecorded.overdue(now - _ABANDONED_S):
            await self._settle(file_id, now - _ABANDONED_S)
        while expired := await self._files.expired(now, limit=_AT_ONCE):
            for record in expired:
                await self._storage.delete(record)
        while overdue := await self._uploads.overdue(now, limit=_AT_ONCE):
            for upload_id in overdue:
                await self._blobs.remove(self._paths.upload_folder(upload_id))
                await self._uploads.forget_parts(upload_id)

    async def _settle(self, file_id: str, before: float) -> None:
        """Delete a file that was announced before `before` (Unix time) and has no record. Raises StoreUnavailable.

        It is set aside first, and put back should it be recorded just then or the database not answer; also in the
        next round, should this process die in between.
        """
        folder = self._paths.file_folder(file_id)
        if await self._files.exists(file_id):
            await self._blobs.put_back(folder)
        elif await self._blobs.set_aside(folder) is not None and not await self._discard(file_id, folder, before):
            return
        await self._unrecorded.settle(file_id)

    async def _discard(self, file_id: str, folder: Path, before: float) -> bool:
        """Delete what was set aside if it still has no record, and nobody is about to make one."""
        unwanted = False
        try:
            is_overdue = await self._unrecorded.is_overdue(file_id, before)
            unwanted = is_overdue and not await self._files.exists(file_id)
        finally:
            if not unwanted:
                await self._blobs.put_back(folder)
        if unwanted:
            await self._blobs.remove(folder)
            _log.warning("file.never_recorded", file_id=file_id)
        return unwanted

    async def _sweep_forever(self) -> None:
        while True:
            await self._attempt(lambda: self.sweep(time.time()))
            await self._attempt(lambda: trail.settle(self._audit))
            await asyncio.sleep(_PERIOD_S)

    async def _attempt(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except (StoreUnavailable, StorageUnavailable) as error:
            _log.warning("sweeper.store_unavailable", reason=type(error).__name__)
        except Exception:  # noqa: BLE001 - one fault must not end the housekeeping; the next round tries again
            _log.error("sweeper.failed", exc_info=True)
