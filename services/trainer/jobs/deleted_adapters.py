"""Files of adapters that nothing names any more: of deleted models, and of epochs that no model was made of.

An adapter's folder goes when its last change is an hour old, when no record names its digest, and when it is known to
be of no use: it was retired an hour ago, or its manifest says which job made it and that has ended. Without such a sign
it stays, so that a database that is new or was lost takes no models along. What an unfinished job has made, or goes on
from, stays too.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

from services.trainer.jobs.settled import ended
from services.trainer.protocol import EXPORTS_FILE, SPEC_FILE, spec_decoder
from services.trainer.stores import Stores
from services.trainer.training.history import History, decode_export
from services.trainer.training.keeping import still_of_use
from shared.blobs.interface import read_whole
from shared.errors import StorageUnavailable, StoreUnavailable
from shared.paths import Paths

KEPT_S = 3600.0
_DIGEST = re.compile(r"[0-9a-f]{64}")
_DOOMED = re.compile(r"\.partial-[0-9a-f]{8}")
"""As remove_folder calls what it deletes."""

log = structlog.get_logger()


class _Manifest(Struct, frozen=True):
    job_id: str = ""


async def drop_deleted(stores: Stores) -> None:
    """Delete what is of no use. Each folder is set aside and looked up again before: it may be published meanwhile."""
    await _tidy(stores)
    found = await stores.blobs.folders(stores.paths.adapters, depth=2)
    old = [kept.folder for kept in found if _DIGEST.fullmatch(kept.folder.name) and _is_old(kept.changed_at)]
    if not old:
        return
    needed, retired = await _needed(stores), await stores.registry.retired()
    unused = [folder for folder in old if folder.name not in needed and await _is_settled(stores, folder, retired)]
    aside: dict[Path, float] = {}
    for folder in unused:
        changed_at = await stores.blobs.set_aside(folder)
        if changed_at is not None:
            aside[folder] = changed_at
    try:
        needed = await _needed(stores) if aside else needed
    except (StoreUnavailable, StorageUnavailable):
        for folder in aside:
            await stores.blobs.put_back(folder)
        raise
    gone = [folder.name for folder, changed_at in aside.items() if await _delete(stores, folder, changed_at, needed)]
    await stores.registry.forget_retired(gone)


async def drop_at_once(stores: Stores, folder: Path, *, known_since: float) -> bool:
    """Delete an adapter that was of use for a moment, without waiting for the sweep.

    It stays where something names it, and where it came again after `known_since` (Unix time, see Blobs.changed_at):
    whoever made it anew is about to name it. Returns whether it is gone.
    """
    if folder.name in await _needed(stores):
        return False
    changed_at = await stores.blobs.set_aside(folder)
    if changed_at is None:
        return False
    try:
        is_free = changed_at <= known_since and folder.name not in await _needed(stores)
    except (StoreUnavailable, StorageUnavailable):
        await stores.blobs.put_back(folder)
        raise
    if not is_free or await stores.blobs.exists(folder):
        await stores.blobs.put_back(folder)
        return False
    await stores.blobs.remove(folder)
    await stores.registry.forget_retired([folder.name])
    return True


async def _needed(stores: Stores) -> set[str]:
    """Return the digests that a record names, and those that unfinished jobs have made or go on from.

    Jobs first: one that ends in between has its records by then.
    """
    jobs = await stores.jobs.active()
    of_jobs = set[str]()
    for job_id in jobs:
        of_jobs |= await _of_job(stores, job_id)
    return of_jobs | await stores.registry.digests()


async def _of_job(stores: Stores, job_id: str) -> set[str]:
    """Return what an unfinished job has made that is of use, and what it goes on from.

    That is by what this host and the store know of it.
    """
    folder = stores.paths.job_folder(job_id)
    found = await asyncio.to_thread(_made_here, stores.paths, folder)
    if stores.blobs.is_local:
        return found
    with suppress(FileNotFoundError):
        lines = (await read_whole(stores.blobs, folder / EXPORTS_FILE)).splitlines(keepends=True)
        exports = [decode_export(line) for line in lines if line.endswith(b"\n")]
        found |= {exported.sha256 for exported in still_of_use(exports)}
    with suppress(FileNotFoundError):
        found.add(spec_decoder.decode(await read_whole(stores.blobs, folder / SPEC_FILE)).parent_sha256 or "")
    return found


def _made_here(paths: Paths, folder: Path) -> set[str]:
    found = {Path(exported.folder).name for exported in still_of_use(History(folder, paths.adapters).exports())}
    if (folder / SPEC_FILE).exists():
        found.add(spec_decoder.decode((folder / SPEC_FILE).read_bytes()).parent_sha256 or "")
    return found


async def _is_settled(stores: Stores, folder: Path, retired: Mapping[str, float]) -> bool:
    """Tell whether this database knows that an adapter is of no use, and for long enough."""
    if folder.name in retired:
        return retired[folder.name] < time.time() - KEPT_S
    job_id = await _maker(stores, folder)
    return job_id != "" and await ended(stores, job_id) is not None


async def _maker(stores: Stores, folder: Path) -> str:
    """Return the id of the job that made an adapter; empty if it is not known."""
    try:
        return msgspec.json.decode(await read_whole(stores.blobs, folder / "manifest.json"), type=_Manifest).job_id
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


def _is_old(changed_at: float) -> bool:
    return changed_at < time.time() - KEPT_S


async def _delete(stores: Stores, folder: Path, changed_at: float, needed: Collection[str]) -> bool:
    """Delete what is still of no use; else it is put back."""
    if folder.name in needed or not _is_old(changed_at) or await stores.blobs.exists(folder):
        await stores.blobs.put_back(folder)
        return False
    await stores.blobs.remove(folder)
    log.info("adapter.dropped", base=folder.parent.name, sha256=folder.name)
    return True


async def _tidy(stores: Stores) -> None:
    """Put back what a trainer that died had set aside, and delete what it was deleting."""
    for kept in await stores.blobs.folders(stores.paths.adapters, depth=2):
        if kept.is_aside and _DIGEST.fullmatch(kept.folder.name):
            await stores.blobs.put_back(kept.folder)
    await asyncio.to_thread(_tidy_disk, stores.paths)


def _tidy_disk(paths: Paths) -> None:
    for folder in paths.adapters.glob("*/.partial-*"):
        if _DOOMED.fullmatch(folder.name):
            shutil.rmtree(folder, ignore_errors=True)
