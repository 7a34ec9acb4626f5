"""`selftune restore`: a data folder and its database from a backup, or nothing at all."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from msgspec.structs import replace

from services.cli.backup import DATA, RECORDS, Manifest, verify
from services.cli.database import Say, database_of
from services.cli.rebuild import Tally, adopt, fill
from shared.blobs.interface import Blobs
from shared.blobs.opening import open_blobs
from shared.errors import InvalidRequest
from shared.paths import Paths, fsync_folder
from shared.record_files import RecordFiles
from shared.settings import Settings
from shared.store import entries
from shared.store.client import Client
from shared.store.entries import Entry
from shared.store.schema import check_version, newest_version

_OF_THE_DISK = frozenset({"lost+found"})
"""What a new file system holds by itself."""


def restore(settings: Settings, backup: Path, say: Say) -> None:
    """Make the data folder, which is empty or not there, and fill its database, which is empty.

    What is in it appears when both are complete. Raises InvalidRequest for a backup that is not whole, a folder or a
    database that is in use, and files that are kept elsewhere than they were; SchemaTooNew for a backup of a newer
    version; StorageUnavailable.
    """
    home = settings.home
    if home.exists() and (not home.is_dir() or _content(home)):
        raise InvalidRequest(f"{home} is not empty; a backup is restored into a new data folder")
    manifest = verify(backup)
    check_version(manifest.database.version, newest_version())
    _check_bucket(settings, backup, manifest)
    staged = _stage(home)
    try:
        _copy(backup, manifest, staged)
        placed = replace(settings, data_dir=str(staged))
        with database_of(placed, Paths(staged).valkey) as url:
            tally = asyncio.run(_fill(url, open_blobs(placed, Paths(staged)), backup, manifest))
        _reveal(staged, home)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    for line in tally.lines():
        say(line)


def _check_bucket(settings: Settings, backup: Path, manifest: Manifest) -> None:
    if manifest.storage_url and not settings.storage_url:
        raise InvalidRequest(
            f"{backup} was made beside the bucket {manifest.storage_url}, which has its files and models; set "
            "storage_url to that bucket, or to one with its content"
        )
    if settings.storage_url and not manifest.storage_url:
        raise InvalidRequest(
            f"{backup} has files and models in itself, and storage_url is set ({settings.storage_url}): restore it "
            "into a data folder; docs/storage.md says how to move that into a bucket"
        )


def _content(home: Path) -> list[Path]:
    return [path for path in home.iterdir() if path.name not in _OF_THE_DISK]


def _stage(home: Path) -> Path:
    """Choose where the folder is made: beside its place, or inside it if it is there and may be a disk of its own."""
    if home.exists():
        return home / f".restore-{secrets.token_hex(4)}"
    home.parent.mkdir(parents=True, exist_ok=True)
    return home.with_name(f".{home.name}.{secrets.token_hex(4)}")


def _reveal(staged: Path, home: Path) -> None:
    """Give the folder its name, or move all that is in it to its place; nothing is left there if that fails."""
    if staged.parent != home:
        staged.replace(home)
        fsync_folder(home.parent)
        return
    moved: list[Path] = []
    try:
        for path in sorted(staged.iterdir()):
            moved.append(path.replace(home / path.name))
        staged.rmdir()
    except BaseException:
        for path in moved:
            path.replace(staged / path.name)
        raise
    fsync_folder(home)


def _copy(backup: Path, manifest: Manifest, staged: Path) -> None:
    Paths(staged).prepare()
    for name, part in manifest.files.items():
        if name == RECORDS:
            continue
        target = staged / Path(name).relative_to(DATA)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(backup / name, target)
        target.chmod(part.mode)
        os.utime(target, ns=(part.mtime_ns, part.mtime_ns))  # files of the same second keep their order
        _sync(target)
    for folder in (staged, *(path for path in staged.rglob("*") if path.is_dir())):
        fsync_folder(folder)


def _sync(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


async def _fill(url: str, blobs: Blobs, backup: Path, manifest: Manifest) -> Tally:
    tally = Tally()
    client, files = Client(url), RecordFiles(blobs)
    try:
        known = await files.database()
        if known is not None and known.id != manifest.database.id:
            raise InvalidRequest("the bucket holds the records of another database than the backup is of")
        if await entries.find(client):
            raise InvalidRequest("the database is not empty; a backup is restored into an empty one, see redis_url")
        await adopt(client, manifest.database)
        await fill(client, blobs, _entries(backup / RECORDS), tally)
        if known is None:
            await files.claim(manifest.database)
    finally:
        await client.close()
    return tally


async def _entries(path: Path) -> AsyncIterator[Entry]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield entries.decode(line)
            except msgspec.MsgspecError as error:
                raise InvalidRequest(f"{path}: line {number}: {error}") from error
