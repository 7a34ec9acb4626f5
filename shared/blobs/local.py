"""The data folder as the store: everything is where it is made, and nothing moves."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from shared import ids
from shared.blobs.interface import Content, Kept
from shared.paths import ASIDE, Paths, fsync_folder, publish_folder, remove_folder, write_together

_BLOCK_BYTES = 1 << 20


class LocalBlobs:
    """Blobs in the data folder, which several processes of one host may share, or several hosts over a network."""

    is_local = True

    def __init__(self, paths: Paths) -> None:
        self.paths = paths

    async def publish(self, staged: Path, final: Path) -> None:
        await asyncio.to_thread(publish_folder, staged, final)

    async def keep(self, folder: Path) -> None:
        await asyncio.to_thread(folder.stat)

    async def fetch(self, folder: Path) -> None:
        await asyncio.to_thread(folder.stat)

    @asynccontextmanager
    async def borrow(self, folder: Path) -> AsyncIterator[Path]:
        await self.fetch(folder)
        yield folder

    async def exists(self, folder: Path) -> bool:
        return await asyncio.to_thread(folder.is_dir)

    async def changed_at(self, path: Path) -> float | None:
        return await asyncio.to_thread(_changed_at, path)

    async def folders(self, parent: Path, *, depth: int) -> list[Kept]:
        return await asyncio.to_thread(_folders, parent, depth)

    async def children(self, parent: Path) -> dict[str, float]:
        return {kept.folder.name: kept.changed_at for kept in await self.folders(parent, depth=1)}

    async def set_aside(self, folder: Path) -> float | None:
        return await asyncio.to_thread(_set_aside, folder)

    async def put_back(self, folder: Path) -> None:
        await asyncio.to_thread(_put_back, folder)

    async def remove(self, folder: Path) -> None:
        await asyncio.to_thread(remove_folder, folder)
        await asyncio.to_thread(remove_folder, _aside(folder))

    async def read(self, file: Path) -> Content:
        size_bytes = (await asyncio.to_thread(file.stat)).st_size
        return Content(size_bytes, _blocks(file))

    async def mark(self, file: Path) -> None:
        await asyncio.to_thread(_touch, file)

    async def keep_file(self, file: Path) -> None:
        """It is kept where it is."""

    async def fetch_file(self, file: Path) -> None:
        await asyncio.to_thread(file.stat)

    async def copy_file(self, source: Path, target: Path) -> None:
        await asyncio.to_thread(_link, source, target)

    async def files(self, folder: Path) -> dict[str, float]:
        return await asyncio.to_thread(_files, folder)

    async def write_files(self, files: Mapping[Path, bytes]) -> None:
        await asyncio.to_thread(_write, files)

    async def read_files(self, files: Iterable[Path]) -> dict[Path, bytes]:
        return await asyncio.to_thread(_read, files)

    async def delete(self, *files: Path) -> None:
        await asyncio.to_thread(_delete, files)

    async def check(self) -> None:
        """Whoever asks writes to the data folder."""


def _aside(folder: Path) -> Path:
    return folder.with_name(f"{ASIDE}{folder.name}")


def _touch(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


def _changed_at(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None


def _folders(parent: Path, depth: int) -> list[Kept]:
    found = []
    for folder in parent.glob("/".join("*" * depth)):
        is_aside = folder.name.startswith(ASIDE)
        if folder.name.startswith(".") and not is_aside:
            continue
        changed_at = _changed_at(folder)
        if changed_at is not None and folder.is_dir():
            found.append(Kept(folder.with_name(folder.name.removeprefix(ASIDE)), changed_at, is_aside))
    return found


def _set_aside(folder: Path) -> float | None:
    aside = _aside(folder)
    with suppress(FileNotFoundError):
        if aside.is_dir():  # of a process that died
            remove_folder(aside) if folder.is_dir() else None
        folder.rename(aside)
    return _changed_at(aside)


def _put_back(folder: Path) -> None:
    aside = _aside(folder)
    if folder.is_dir():  # it has come again
        remove_folder(aside)
        return
    try:
        aside.rename(folder)
    except FileNotFoundError:
        return
    except OSError:
        if not folder.is_dir():
            raise
        remove_folder(aside)


async def _blocks(file: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(file.open, "rb") as handle:
        while block := await asyncio.to_thread(handle.read, _BLOCK_BYTES):
            yield block


def _link(source: Path, target: Path) -> None:
    """Give the bytes a second name, or copy them where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.parent.touch()  # so that it does not look abandoned, however long ago the first attempt was
    try:
        os.link(source, target)
    except FileExistsError:  # the same request, sent twice at the same time
        return
    except FileNotFoundError:
        raise
    except OSError:
        draft = target.with_name(f".{target.name}.{ids.new_token()}")
        shutil.copyfile(source, draft)
        draft.replace(target)


def _files(folder: Path) -> dict[str, float]:
    try:
        found = {path.name: _changed_at(path) for path in folder.iterdir() if path.is_file()}
    except FileNotFoundError:
        return {}
    return {name: changed_at for name, changed_at in found.items() if changed_at is not None}


def _write(files: Mapping[Path, bytes]) -> None:
    for folder in {path.parent for path in files}:
        folder.mkdir(parents=True, exist_ok=True)
    write_together(files, mode=0o600)  # webhooks' secrets are among them


def _read(files: Iterable[Path]) -> dict[Path, bytes]:
    found = {}
    for file in files:
        with suppress(FileNotFoundError):
            found[file] = file.read_bytes()
    return found


def _delete(files: Iterable[Path]) -> None:
    changed = set()
    for file in files:
        with suppress(FileNotFoundError):
            file.unlink()
            changed.add(file.parent)
    for folder in changed:
        fsync_folder(folder)
