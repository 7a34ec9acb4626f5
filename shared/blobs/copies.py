"""Copies on this host's disk of what an object store has, or had."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Collection
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


Unfinished = Callable[[], Awaitable[Collection[str]]]
"""Gives the ids of the jobs that are not at their end."""


class _Manifest(Struct, frozen=True):
    """What is of interest of manifest.json, of a file or of an adapter."""

    sha256: str = ""
    job_id: str = ""


async def drop_copies(blobs: Blobs, unfinished: Unfinished) -> None:
    """Delete copies of what the store does not have any more, an hour after they came; with a file go its tokens.

    What the store has neither given nor taken is no copy, and stays: it was here before there was a store, or is on
    its way there. What an unfinished job has made stays, too. Nothing happens where the data folder is the store.
    Raises StorageUnavailable, StoreUnavailable, and then nothing more is deleted.
    """
    if blobs.is_local:
        return
    paths, before = blobs.paths, time.time() - OLD_S
    await asyncio.to_thread(_drop_half_fetched, paths, before)
    for parent, depth in ((paths.adapters, 2), (paths.models, 2), (paths.files, 1)):
        stored = {kept.folder for kept in await blobs.folders(parent, depth=depth)}
        here = await LocalBlobs(paths).folders(parent, depth=depth)
        old = [copy.folder for copy in here if copy.changed_at < before and not copy.is_aside]
        stale = [folder for folder in old if folder not in stored and await asyncio.to_thread(is_copy, paths, folder)]
        jobs = await unfinished() if stale else ()
        for folder in stale:
            if await asyncio.to_thread(_maker, paths, folder) not in jobs and not await blobs.exists(folder):
                await asyncio.to_thread(_drop, paths, folder)
    await asyncio.to_thread(forget_gone, paths)


def _maker(paths: Paths, folder: Path) -> str:
    """Return the id of the job that made an adapter or a whole model; empty if it is not known."""
    return folder.parent.name if folder.parent.parent == paths.models else _manifest(folder).job_id


def _manifest(folder: Path) -> _Manifest:
    try:
        return msgspec.json.decode((folder / "manifest.json").read_bytes(), type=_Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return _Manifest()


def _drop(paths: Paths, folder: Path) -> None:
    log.info("copy.dropped", folder=paths.relative(folder))
    sha256 = _manifest(folder).sha256 if folder.parent == paths.files else ""
    remove_folder(folder)
    if sha256:
        forget_file(paths.tokens, sha256)


def _drop_half_fetched(paths: Paths, before: float) -> None:
    """Delete what a process that died was fetching."""
    for folder in paths.fetching.iterdir():
        with suppress(FileNotFoundError):
            if folder.stat().st_mtime < before:
                shutil.rmtree(folder, ignore_errors=True)
