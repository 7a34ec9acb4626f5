"""`selftune restore`: a data folder and its database from a backup, or nothing at all."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec.structs import replace

from services.cli.backup import DATA, RECORDS, Manifest, verify
from services.cli.database import Say, database_of
from services.cli.rebuild import Tally, adopt, fill
from shared.errors import InvalidRequest
from shared.paths import Paths, fsync_folder
from shared.record_files import RecordFiles
from shared.settings import Settings
from shared.store import entries
from shared.store.client import Client
from shared.store.entries import Entry
from shared.store.schema import check_version, newest_version


def restore(settings: Settings, backup: Path, say: Say) -> None:
    """Make the data folder, which is empty or not there, and fill its database, which is empty.

    The folder appears when both are complete. Raises InvalidRequest for a backup that is not whole, a folder or a
    database that is in use, and SchemaTooNew for a backup of a newer version.
    """
    home = settings.home
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise InvalidRequest(f"{home} is not empty; a backup is restored into a new data folder")
    manifest = verify(backup)
    check_version(manifest.database.version, newest_version())
    home.parent.mkdir(parents=True, exist_ok=True)
    staged = home.with_name(f".{home.name}.{secrets.token_hex(4)}")
    try:
        _copy(backup, manifest, staged)
        placed = replace(settings, data_dir=str(staged))
        with database_of(placed, Paths(staged).valkey) as url:
            tally = asyncio.run(_fill(url, Paths(staged), backup, manifest))
        staged.replace(home)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    fsync_folder(home.parent)
    for line in tally.lines():
        say(line)


def _copy(backup: Path, manifest: Manifest, staged: Path) -> None:
    paths = Paths(staged)
    paths.prepare()
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
    RecordFiles(paths.records).claim(manifest.database)


def _sync(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


async def _fill(url: str, paths: Paths, backup: Path, manifest: Manifest) -> Tally:
    tally = Tally()
    client = Client(url)
    try:
        if await entries.find(client):
            raise InvalidRequest("the database is not empty; a backup is restored into an empty one, see redis_url")
        await adopt(client, manifest.database)
        await fill(client, paths, _entries(backup / RECORDS), tally)
    finally:
        await client.close()
    return tally


def _entries(path: Path) -> Iterator[Entry]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield entries.decode(line)
            except msgspec.MsgspecError as error:
                raise InvalidRequest(f"{path}: line {number}: {error}") from error
