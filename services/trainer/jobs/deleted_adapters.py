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
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

from services.trainer.jobs.settled import ended
from services.trainer.protocol import SPEC_FILE, spec_decoder
from services.trainer.stores import Stores
from services.trainer.training.history import History
from shared.errors import StoreUnavailable
from shared.paths import Paths, remove_folder

KEPT_S = 3600.0
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ASIDE = ".partial-"
_DOOMED = re.compile(r"\.partial-[0-9a-f]{8}")
"""As remove_folder calls what it deletes."""

log = structlog.get_logger()


class _Manifest(Struct, frozen=True):
    job_id: str = ""


async def drop_deleted(stores: Stores) -> None:
    """Delete what is of no use. Each folder is set aside and looked up again before: it may be published meanwhile."""
    await asyncio.to_thread(_tidy, stores.paths)
    old = await asyncio.to_thread(_old_folders, stores.paths)
    if not old:
        return
    needed, retired = await _needed(stores), await stores.registry.retired()
    unused = [folder for folder in old if folder.name not in needed and await _is_settled(stores, folder, retired)]
    aside = await asyncio.to_thread(_set_aside, unused)
    try:
        needed = await _needed(stores) if aside else needed
    except StoreUnavailable:
        await asyncio.to_thread(_put_back, aside)
        raise
    gone = await asyncio.to_thread(_delete, aside, needed)
    await stores.registry.forget_retired(gone)


async def _needed(stores: Stores) -> set[str]:
    """Return the digests that a record names, and those that unfinished jobs have made or go on from.

    Jobs first: one that ends in between has its records by then.
    """
    jobs = await stores.jobs.active()
    of_jobs = await asyncio.to_thread(_of_jobs, stores.paths, jobs)
    return of_jobs | await stores.registry.digests()


def _of_jobs(paths: Paths, jobs: Sequence[str]) -> set[str]:
    found = set[str]()
    for folder in map(paths.job_folder, jobs):
        found |= {Path(exported.folder).name for exported in History(folder, paths.adapters).exports()}
        if (folder / SPEC_FILE).exists():
            found.add(spec_decoder.decode((folder / SPEC_FILE).read_bytes()).parent_sha256 or "")
    return found


async def _is_settled(stores: Stores, folder: Path, retired: Mapping[str, float]) -> bool:
    """Tell whether this database knows that an adapter is of no use, and for long enough."""
    if folder.name in retired:
        return retired[folder.name] < time.time() - KEPT_S
    job_id = await asyncio.to_thread(_maker, folder)
    return job_id != "" and await ended(stores, job_id) is not None


def _maker(folder: Path) -> str:
    """Return the id of the job that made an adapter; empty if it is not known."""
    try:
        return msgspec.json.decode((folder / "manifest.json").read_bytes(), type=_Manifest).job_id
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


def _old_folders(paths: Paths) -> list[Path]:
    return [folder for folder in paths.adapters.glob("*/*") if _DIGEST.fullmatch(folder.name) and _is_old(folder)]


def _is_old(folder: Path) -> bool:
    try:
        return folder.stat().st_mtime < time.time() - KEPT_S
    except FileNotFoundError:
        return False


def _set_aside(folders: Collection[Path]) -> list[Path]:
    """Rename folders so that who publishes the same bytes does not find them, and return their new places."""
    moved = []
    for folder in folders:
        try:
            moved.append(folder.rename(folder.with_name(f"{_ASIDE}{folder.name}")))
        except FileNotFoundError:  # by another trainer
            continue
    return moved


def _put_back(aside: Collection[Path]) -> None:
    for folder in aside:
        final = folder.with_name(folder.name.removeprefix(_ASIDE))
        if final.is_dir():  # published again meanwhile
            remove_folder(folder)
        elif folder.is_dir():
            folder.rename(final)


def _delete(aside: Collection[Path], needed: Collection[str]) -> list[str]:
    """Delete what is still of no use, and return its digests; the others are put back."""
    gone = []
    for folder in aside:
        digest = folder.name.removeprefix(_ASIDE)
        if digest in needed or not _is_old(folder):
            _put_back([folder])
            continue
        remove_folder(folder)
        log.info("adapter.dropped", base=folder.parent.name, sha256=digest)
        gone.append(digest)
    return gone


def _tidy(paths: Paths) -> None:
    """Put back what a trainer that died had set aside, and delete what it was deleting."""
    for folder in paths.adapters.glob(f"*/{_ASIDE}*"):
        if _DIGEST.fullmatch(folder.name.removeprefix(_ASIDE)):
            _put_back([folder])
        elif _DOOMED.fullmatch(folder.name):
            shutil.rmtree(folder, ignore_errors=True)
