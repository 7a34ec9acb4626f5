"""`selftune backup`: a copy of everything that is kept, while the stack runs, and whether such a copy is whole.

    DEST/records.jsonl    every record of the database, an entry a line: shared/store/entries.py
    DEST/data/            the data folder, without what can be made again
    DEST/backup.json      what belongs to it, with SHA-256; written last, so that half a backup has none

The database is read first, then the folder: what a record names was there before the record, and is copied after it.
What is deleted in between is left out when the backup is restored; a file that is uploaded in between is restored,
since its manifest lies beside it.

With an object store, what that has stays there: the backup has the database and the rest of this host's data folder.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import msgspec
from msgspec import Struct

from services.cli.database import Say
from shared.errors import InvalidRequest, StoreUnavailable
from shared.paths import Paths, fsync_folder, write_atomic
from shared.settings import Settings
from shared.store import entries
from shared.store.client import Client
from shared.store.schema import Schema, read_schema

MANIFEST, RECORDS, DATA = "backup.json", "records.jsonl", "data"
_FORM, _FORM_BESIDE_BUCKET = 1, 2
"""A version that knows the first alone would restore records without their files."""
_MADE_AGAIN = frozenset({"valkey", "tokens", "compiled", "logs", "records", "up.lock"})
_KEPT_HIDDEN = frozenset({".unrecorded"})
_BLOCK_BYTES = 1 << 20
_IMMUTABLE = frozenset({"files", "adapters", "models", "bases"})


class Part(Struct, frozen=True, kw_only=True):
    """A file of the backup."""

    size_bytes: int
    sha256: str
    mode: int
    mtime_ns: int


class Manifest(Struct, frozen=True, kw_only=True):
    """backup.json."""

    form: int
    selftune_version: str
    created_at: int
    database: Schema
    records: int
    files: dict[str, Part]
    """By path in the backup."""
    storage_url: str = ""
    """The bucket that has the files and models; empty where the backup has them."""


def back_up(settings: Settings, dest: Path, say: Say, *, link: bool = False) -> None:
    """Write a backup to `dest`, a folder that is empty or not there.

    With `link` what never changes is linked instead of copied, where `dest` is on the same disk. Raises InvalidRequest,
    StoreUnavailable, OSError.
    """
    home = settings.home
    if not home.is_dir():
        raise InvalidRequest(f"{home} is no data folder")
    if dest.resolve().is_relative_to(home):
        raise InvalidRequest(f"{dest} is inside the data folder")
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise InvalidRequest(f"{dest} is not empty")
    dest.mkdir(parents=True, exist_ok=True, mode=0o700)
    started = int(time.time())
    schema, count = asyncio.run(_copy_records(settings, dest / RECORDS))
    copy = _Copy(home, dest, link=link, left_out=_in_bucket(home) if settings.storage_url else frozenset())
    copy.run()
    files = {RECORDS: _describe(dest / RECORDS), **copy.parts}
    manifest = Manifest(
        form=_FORM_BESIDE_BUCKET if settings.storage_url else _FORM,
        selftune_version=metadata.version("selftune"), created_at=started, database=schema, records=count, files=files,
        storage_url=settings.storage_url,
    )  # fmt: skip
    write_atomic(dest / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)), mode=0o600)
    total = sum(part.size_bytes for part in files.values())
    say(f"{dest}: {count} records and {len(files) - 1} files, {total / 1e6:.1f} MB")
    if settings.storage_url:
        say(f"files and models stay in {settings.storage_url}, which has to keep what is deleted there from now on")


def _in_bucket(home: Path) -> frozenset[str]:
    """Name the folders of which an object store has what matters."""
    paths = Paths(home)
    kept = (
        paths.files, paths.uploads, paths.batches, paths.evals, paths.flows, paths.jobs, paths.adapters, paths.models,
        paths.fetching,
    )  # fmt: skip
    return frozenset(folder.name for folder in kept)


async def _copy_records(settings: Settings, target: Path) -> tuple[Schema, int]:
    client = Client(settings.database_url, timeout_s=30.0)
    try:
        schema = await read_schema(client)
        if schema is None:
            raise InvalidRequest("the database has not been used by selftune yet: there is nothing to back up")
        count = 0
        with os.fdopen(_private(target), "wb") as out:
            for family, names in (await entries.find(client)).items():
                async for entry in entries.read(client, family, names):
                    out.write(entries.encode(entry) + b"\n")
                    count += 1
            out.flush()
            os.fsync(out.fileno())
        if await read_schema(client) != schema:
            raise InvalidRequest("the database was emptied or converted meanwhile; back up again")
        return schema, count
    except StoreUnavailable as error:
        raise StoreUnavailable("the database does not answer; the stack has to run") from error
    finally:
        await client.close()


def _private(path: Path) -> int:
    """Make a file that nobody else may read, and return its descriptor."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


class _Copy:
    """Copies the data folder; `parts` says what was copied."""

    def __init__(self, home: Path, dest: Path, *, link: bool, left_out: frozenset[str]) -> None:
        self._home = home
        self._dest = dest
        self._link = link
        self._left_out = _MADE_AGAIN | left_out
        self.parts: dict[str, Part] = {}

    def run(self) -> None:
        """Copy, and drop what was deleted at the source meanwhile: it may be half a folder."""
        target = self._dest / DATA
        target.mkdir(mode=0o700)
        folders = list(self._copy_folder(self._home, target))
        for source, copied in folders:
            if not source.is_dir() and copied.is_dir():
                self._drop(copied)
        for _, copied in folders:
            if copied.is_dir():
                fsync_folder(copied)
        fsync_folder(self._dest)

    def _copy_folder(self, source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
        for path in sorted(_listed(source)):
            if path.name.startswith(".") and path.name not in _KEPT_HIDDEN:
                continue
            if source == self._home and path.name in self._left_out:
                continue
            copied = target / path.name
            if path.is_dir():
                copied.mkdir()
                yield path, copied
                yield from self._copy_folder(path, copied)
            elif path.is_file():
                self._copy_file(path, copied)

    def _copy_file(self, source: Path, target: Path) -> None:
        immutable = source.relative_to(self._home).parts[0] in _IMMUTABLE
        try:
            part = _linked(source, target) if self._link and immutable else _copied(source, target)
        except FileNotFoundError:  # deleted meanwhile
            target.unlink(missing_ok=True)
            return
        self.parts[target.relative_to(self._dest).as_posix()] = part

    def _drop(self, folder: Path) -> None:
        shutil.rmtree(folder)
        inside = folder.relative_to(self._dest).as_posix() + "/"
        self.parts = {name: part for name, part in self.parts.items() if not name.startswith(inside)}


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _copied(source: Path, target: Path) -> Part:
    """Copy a file, to disk, and describe the copy: the source may grow meanwhile."""
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as read, os.fdopen(_private(target), "wb") as write:
        while block := read.read(_BLOCK_BYTES):
            write.write(block)
            digest.update(block)
            size += len(block)
        write.flush()
        os.fsync(write.fileno())
        found = os.fstat(read.fileno())
    target.chmod(stat.S_IMODE(found.st_mode))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
    return Part(
        size_bytes=size, sha256=digest.hexdigest(), mode=stat.S_IMODE(found.st_mode), mtime_ns=found.st_mtime_ns
    )


def _linked(source: Path, target: Path) -> Part:
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or one that has no links
        return _copied(source, target)
    return _describe(target)


def _describe(path: Path) -> Part:
    found = path.stat()
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    mode = stat.S_IMODE(found.st_mode)
    return Part(size_bytes=found.st_size, sha256=digest, mode=mode, mtime_ns=found.st_mtime_ns)


def read_manifest(backup: Path) -> Manifest:
    """Raises InvalidRequest for half a backup, or what is none."""
    try:
        manifest = msgspec.json.decode((backup / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError as error:
        raise InvalidRequest(f"{backup} has no {MANIFEST}: it is no backup, or one that was not finished") from error
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{backup / MANIFEST}: {error}") from error
    if manifest.form not in (_FORM, _FORM_BESIDE_BUCKET):
        raise InvalidRequest(f"{backup} was made by a newer version ({manifest.selftune_version})")
    if any(".." in Path(name).parts or Path(name).is_absolute() for name in manifest.files):
        raise InvalidRequest(f"{backup / MANIFEST} names files outside the backup")
    return manifest


def verify(backup: Path) -> Manifest:
    """Read every byte of a backup. Raises InvalidRequest that names the first file that is not as it was written."""
    manifest = read_manifest(backup)
    for name, part in manifest.files.items():
        try:
            found = _describe(backup / name)
        except OSError as error:
            raise InvalidRequest(f"{backup / name}: {error.strerror}") from error
        if (found.size_bytes, found.sha256) != (part.size_bytes, part.sha256):
            raise InvalidRequest(f"{backup / name} is not as it was written: its SHA-256 differs")
    present = {path.relative_to(backup).as_posix() for path in backup.rglob("*") if path.is_file()}
    unknown = sorted(present - manifest.files.keys() - {MANIFEST})
    if unknown:
        raise InvalidRequest(f"{backup / unknown[0]} does not belong to the backup")
    return manifest
