"""Folders that a batch, an eval's run or a flow did not need any more, or never got to need, when a process died.

A database that was emptied or exchanged needs none of them, and must not take them along: they go only while the
database is the one that `records/` is of.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from contextlib import suppress
from pathlib import Path

import structlog

from shared.blobs.interface import Blobs
from shared.errors import InvalidRequest, StorageUnavailable
from shared.record_files import RecordFiles
from shared.store.client import Client
from shared.store.schema import read_schema

_log = structlog.get_logger()

_PERIOD_S = 3600.0
"""How often folders that nobody needs are looked for, and how old such a folder is at least."""
_RETRY_S = 5.0
"""When it is tried again while the database is another one, or none has been noted yet."""


class Leftovers:
    """What lies in a folder of the data folder, on this disk and in an object store."""

    def __init__(self, client: Client, blobs: Blobs, parent: Path) -> None:
        self._client = client
        self._blobs = blobs
        self._parent = parent
        self._due_at = 0.0

    async def tidy(self, needed: frozenset[str]) -> None:
        """Delete what is not needed, if it is time to; what is needed was read just before. Raises StoreUnavailable."""
        if time.monotonic() < self._due_at:
            return
        is_known = await _is_known(self._client, self._blobs)
        self._due_at = time.monotonic() + (_PERIOD_S if is_known else _RETRY_S)
        if is_known:
            await _tidy(self._blobs, self._parent, needed=needed, before=time.time() - _PERIOD_S)


async def _is_known(client: Client, blobs: Blobs) -> bool:
    """Tell whether the database is the one that the records beside the folders are of."""
    try:
        known = await RecordFiles(blobs).database()
    except (InvalidRequest, StorageUnavailable, OSError):
        return False
    schema = await read_schema(client)
    return known is not None and schema is not None and known.id == schema.id


async def _tidy(blobs: Blobs, parent: Path, *, needed: frozenset[str], before: float) -> None:
    """Delete what is in `parent`, on this disk and in an object store, unless it is needed or newer (Unix time)."""
    await asyncio.to_thread(_tidy_disk, parent, needed, before)
    if blobs.is_local:
        return
    with suppress(StorageUnavailable):
        for name, changed_at in (await blobs.children(parent)).items():
            if name not in needed and changed_at < before:
                await blobs.remove(parent / name)
                _log.info("leftovers.deleted", folder=f"{parent.name}/{name}")


def _tidy_disk(parent: Path, needed: frozenset[str], before: float) -> None:
    for folder in parent.iterdir() if parent.is_dir() else ():
        with suppress(FileNotFoundError):  # another process was faster
            if folder.name not in needed and folder.stat().st_mtime < before:
                shutil.rmtree(folder, ignore_errors=True)
                _log.info("leftovers.deleted", folder=f"{parent.name}/{folder.name}")
