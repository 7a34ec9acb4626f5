"""Folders that a batch or an eval's run did not need any more, or never got to need, when a process died."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress
from pathlib import Path

import structlog

from shared.blobs.interface import Blobs
from shared.errors import StorageUnavailable

_log = structlog.get_logger()


async def tidy(blobs: Blobs, parent: Path, *, needed: frozenset[str], before: float) -> None:
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
    for folder in parent.iterdir():
        with suppress(FileNotFoundError):  # another process was faster
            if folder.name not in needed and folder.stat().st_mtime < before:
                shutil.rmtree(folder, ignore_errors=True)
                _log.info("leftovers.deleted", folder=f"{parent.name}/{folder.name}")
