"""Copies on this host's disk of what an object store has, or had."""

from __future__ import annotations

import asyncio
import shutil
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

from shared.blobs.interface import Blobs
from shared.blobs.local import LocalBlobs
from shared.blobs.marks import forget_gone, is_copy
from shared.paths import Paths, remove_folder
from shared.token_cache import forget_file

OLD_S = 3600.0
"""What is younger may be on its way into the store."""

log = structlog.get_logger()


class _Manifest(Struct, frozen=True):
    sha256: str = ""


async def drop_copies(blobs: Blobs) -> None:
    """Delete copies of what the store does not have any more, an hour after they came; with a file go its tokens.

    What the store has neither given nor taken is no copy, and stays: it was here before there was a store, or is on
    its way there. Nothing happens where the data folder is the store. Raises StorageUnavailable, and then nothing more
    is deleted.
    """
    if blobs.is_local:
        return
    paths, before = blobs.paths, time.time() - OLD_S
    await asyncio.to_thread(_drop_half_fetched, paths, before)
    for parent, depth in ((paths.adapters, 2), (paths.models, 2), (paths.files, 1)):
        stored = {kept.folder for kept in await blobs.folders(parent, depth=depth)}
        for copy in await LocalBlobs(paths).folders(parent, depth=depth):
            if copy.folder in stored or copy.changed_at >= before or copy.is_aside:
                continue
            if await asyncio.to_thread(is_copy, paths, copy.folder) and not await blobs.exists(copy.folder):
                await asyncio.to_thread(_drop, paths, copy.folder)
    await asyncio.to_thread(forget_gone, paths)


def _drop(paths: Paths, folder: Path) -> None:
    log.info("copy.dropped", folder=paths.relative(folder))
    sha256 = ""
    if folder.parent == paths.files:
        with suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
            sha256 = msgspec.json.decode((folder / "manifest.json").read_bytes(), type=_Manifest).sha256
    remove_folder(folder)
    if sha256:
        forget_file(paths.tokens, sha256)


def _drop_half_fetched(paths: Paths, before: float) -> None:
    """Delete what a process that died was fetching."""
    for folder in paths.fetching.iterdir():
        with suppress(FileNotFoundError):
            if folder.stat().st_mtime < before:
                shutil.rmtree(folder, ignore_errors=True)
