"""An object store as what lasts, and the data folder as a working copy of it.

A folder is in the store when its list is: `.whole.json` names every file with its size and hash, is written last and
deleted first. `.aside.json` is the list of a folder that was set aside.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import quote, unquote

import msgspec
import structlog
from msgspec import Struct

from shared.blobs.bucket import Bucket
from shared.blobs.interface import Content, Kept
from shared.blobs.marks import mark_copy
from shared.errors import StorageUnavailable
from shared.paths import Paths, fsync_folder, publish_folder, remove_folder

WHOLE = ".whole.json"
ASIDE = ".aside.json"
_TRIES = 5
_SMALL_AT_ONCE = 16

log = structlog.get_logger()


class _File(Struct, frozen=True):
    size_bytes: int
    sha256: str


class _List(Struct, frozen=True):
    files: dict[str, _File]


_decode = msgspec.json.Decoder(_List).decode


class ObjectBlobs:
    """Blobs in a bucket; keys are the paths in the data folder. Its methods belong to one event loop."""

    is_local = False

    def __init__(self, paths: Paths, bucket: Bucket) -> None:
        self.paths = paths
        self._bucket = bucket
        self._fetching: dict[Path, asyncio.Task[None]] = {}

    async def publish(self, staged: Path, final: Path) -> None:
        await self._store(staged, final)
        await asyncio.to_thread(shutil.rmtree, staged)

    async def keep(self, folder: Path) -> None:
        await asyncio.to_thread(folder.stat)
        await self._store(folder, folder)
        await asyncio.to_thread(mark_copy, self.paths, folder)

    async def fetch(self, folder: Path) -> None:
        if await asyncio.to_thread(folder.is_dir):
            return
        task = self._fetching.get(folder)
        if task is None:
            task = self._fetching[folder] = asyncio.create_task(self._fetch(folder))
            task.add_done_callback(lambda _: self._fetching.pop(folder, None))
        await asyncio.shield(task)

    @asynccontextmanager
    async def borrow(self, folder: Path) -> AsyncIterator[Path]:
        if await asyncio.to_thread(folder.is_dir):
            yield folder
            return
        copy = self._place_for_copy()
        try:
            await self._download(folder, copy)
            yield copy
        finally:
            await asyncio.to_thread(shutil.rmtree, copy, ignore_errors=True)

    async def exists(self, folder: Path) -> bool:
        return await self.changed_at(folder / WHOLE) is not None

    async def changed_at(self, path: Path) -> float | None:
        for key in (self._key(path / WHOLE), self._key(path)):
            with suppress(FileNotFoundError):
                return (await self._bucket.look(key)).changed_at
        return None

    async def folders(self, parent: Path, *, depth: int) -> list[Kept]:
        found: dict[Path, Kept] = {}
        for each in await self._bucket.objects(self._key(parent)):
            path = self._path(each.key)
            if path.name in (WHOLE, ASIDE) and len(path.parent.relative_to(parent).parts) == depth:
                is_aside = path.name == ASIDE
                if not (is_aside and path.parent in found):
                    found[path.parent] = Kept(path.parent, each.changed_at, is_aside)
        return list(found.values())

    async def children(self, parent: Path) -> dict[str, float]:
        found: dict[str, float] = {}
        for each in await self._bucket.objects(self._key(parent)):
            name = self._path(each.key).relative_to(parent).parts[0]
            found[name] = max(each.changed_at, found.get(name, 0.0))
        return found

    async def set_aside(self, folder: Path) -> float | None:
        whole, aside = self._key(folder / WHOLE), self._key(folder / ASIDE)
        try:
            changed_at = (await self._bucket.look(whole)).changed_at
            await self._bucket.copy(whole, aside)
            await self._bucket.delete([whole])
        except FileNotFoundError:  # half stored, or set aside already
            left = await self._bucket.objects(self._key(folder))
            return max((each.changed_at for each in left), default=None)
        return changed_at

    async def put_back(self, folder: Path) -> None:
        whole, aside = self._key(folder / WHOLE), self._key(folder / ASIDE)
        with suppress(FileNotFoundError):
            if not await self.exists(folder):
                await self._bucket.copy(aside, whole)
            await self._bucket.delete([aside])

    async def remove(self, folder: Path) -> None:
        found = [each.key for each in await self._bucket.objects(self._key(folder))]
        lists = [key for key in found if key.rpartition("/")[2] in (WHOLE, ASIDE)]
        await self._bucket.delete(lists)
        await self._bucket.delete([key for key in found if key not in lists])
        await asyncio.to_thread(remove_folder, folder)

    async def read(self, file: Path) -> Content:
        key = self._key(file)
        size_bytes = await self._bucket.size(key)
        return Content(size_bytes, self._bucket.pieces(key, size_bytes))

    async def mark(self, file: Path) -> None:
        await self._bucket.put(self._key(file), b"")

    async def keep_file(self, file: Path) -> None:
        # Read first: others may append to it, and an object is as long as was announced.
        await self._bucket.put(self._key(file), await asyncio.to_thread(file.read_bytes))

    async def fetch_file(self, file: Path) -> None:
        copy = self._place_for_copy()
        try:
            await asyncio.to_thread(copy.mkdir, parents=True)
            await self._receive(self._key(file), copy / file.name)
            await asyncio.to_thread(_move, copy / file.name, file)
        finally:
            await asyncio.to_thread(shutil.rmtree, copy, ignore_errors=True)

    async def copy_file(self, source: Path, target: Path) -> None:
        await self._bucket.copy(self._key(source), self._key(target))

    async def files(self, folder: Path) -> dict[str, float]:
        found = await self._bucket.directly_in(self._key(folder))
        return {self._path(each.key).name: each.changed_at for each in found}

    async def write_files(self, files: Mapping[Path, bytes]) -> None:
        async def write(file: Path) -> None:
            await self._bucket.put(self._key(file), files[file])

        await _for_each(files, write)

    async def read_files(self, files: Iterable[Path]) -> dict[Path, bytes]:
        found: dict[Path, bytes] = {}

        async def read(file: Path) -> None:
            with suppress(FileNotFoundError):
                found[file] = await self._bucket.read(self._key(file))

        await _for_each(files, read)
        return found

    async def delete(self, *files: Path) -> None:
        await self._bucket.delete(map(self._key, files))

    async def check(self) -> None:
        await self._bucket.directly_in(self._key(self.paths.unrecorded / "check"))

    async def _store(self, source: Path, final: Path) -> None:
        """Put a folder's files, then its list; of one that is there, the list alone, since that makes it new.

        Who deletes the folder at that moment may take files that were put before the list, so they are looked up after
        it, and put once more if one is missing. Raises StorageUnavailable when that happens again and again.
        """
        key = self._key(final / WHOLE)
        for _ in range(_TRIES):
            try:
                listed = await self._bucket.read(key)
            except FileNotFoundError:
                listed = await self._store_files(source, final)
            await self._bucket.put(key, listed)
            if await self._has_files(final, _decode(listed)):
                return
            log.warning("storage.folder_deleted_meanwhile", folder=self.paths.relative(final))
            await self._bucket.delete([key])
        raise StorageUnavailable("The server's object storage lost what was put there; please try again.")

    async def _has_files(self, final: Path, listed: _List) -> bool:
        sizes = {each.key: each.size_bytes for each in await self._bucket.objects(self._key(final))}
        return all(sizes.get(self._key(final / name)) == file.size_bytes for name, file in listed.files.items())

    async def _store_files(self, source: Path, final: Path) -> bytes:
        files = {}
        for path in await asyncio.to_thread(_files_in, source):
            name = path.relative_to(source).as_posix()
            files[name] = await asyncio.to_thread(_describe, path)
            await self._bucket.put(self._key(final / name), path)
        return msgspec.json.encode(_List(files))

    async def _fetch(self, folder: Path) -> None:
        copy = self._place_for_copy()
        try:
            await self._download(folder, copy)
            await asyncio.to_thread(publish_folder, copy, folder)
            await asyncio.to_thread(mark_copy, self.paths, folder)
        finally:
            await asyncio.to_thread(shutil.rmtree, copy, ignore_errors=True)

    async def _download(self, folder: Path, copy: Path) -> None:
        """Copy a folder, and compare every byte with its list. Raises OSError if they differ."""
        listed = _decode(await self._bucket.read(self._key(folder / WHOLE)))
        await asyncio.to_thread(copy.mkdir, parents=True)
        for name, expected in listed.files.items():
            target = copy / name
            if not target.resolve().is_relative_to(copy.resolve()):
                raise OSError(errno.EINVAL, f"{folder.name}: its list names a file outside of it")
            await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
            if await self._receive(self._key(folder / name), target) != expected:
                raise OSError(errno.EIO, f"{folder.name}/{name}: damaged in the object storage")

    async def _receive(self, key: str, target: Path) -> _File:
        digest, received = hashlib.sha256(), 0
        with await asyncio.to_thread(target.open, "xb") as handle:
            async for piece in self._bucket.pieces(key, await self._bucket.size(key)):
                await asyncio.to_thread(handle.write, piece)
                await asyncio.to_thread(digest.update, piece)
                received += len(piece)
        return _File(received, digest.hexdigest())

    def _place_for_copy(self) -> Path:
        return self.paths.fetching / secrets.token_hex(8)

    def _key(self, path: Path) -> str:
        return "/".join(quote(part, safe="") for part in path.relative_to(self.paths.home).parts)

    def _path(self, key: str) -> Path:
        return self.paths.home.joinpath(*map(unquote, key.split("/")))


async def _for_each(files: Iterable[Path], work: Callable[[Path], Awaitable[None]]) -> None:
    """Do something with each, several at once; when it fails nothing of it is still under way."""
    waiting = list(files)
    for start in range(0, len(waiting), _SMALL_AT_ONCE):
        some = waiting[start : start + _SMALL_AT_ONCE]
        for outcome in await asyncio.gather(*map(work, some), return_exceptions=True):
            if outcome is not None:
                raise outcome


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _describe(path: Path) -> _File:
    with path.open("rb") as handle:
        return _File(path.stat().st_size, hashlib.file_digest(handle, "sha256").hexdigest())


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
    fsync_folder(target.parent)
