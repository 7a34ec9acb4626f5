"""What a store of blobs does. Two there are: `LocalBlobs` and `ObjectBlobs`; `open_blobs` chooses by the settings.

Every path is one in the data folder (shared.paths). A folder is kept whole or not at all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from shared.paths import Paths


class Kept(NamedTuple):
    """A folder that is kept. `changed_at` is the Unix time at which it came, or came again."""

    folder: Path
    changed_at: float
    is_aside: bool = False
    """Whether it was set aside, by a process that may have died."""


class Content(NamedTuple):
    """A file as a stream."""

    size_bytes: int
    blocks: AsyncIterator[bytes]


@runtime_checkable
class Blobs(Protocol):
    """Every method may be called twice, and by several processes at once.

    All raise StorageUnavailable when an object store does not answer, and OSError when the disk does not take or give
    something.
    """

    paths: Paths

    @property
    def is_local(self) -> bool:
        """Whether the data folder is all there is."""

    async def publish(self, staged: Path, final: Path) -> None:
        """Move a finished folder to the place `final`, for good; `staged` is gone then.

        What is there already holds the same content, stays, and counts as new.
        """

    async def keep(self, folder: Path) -> None:
        """Have a folder kept that is in its place on this disk; it counts as new. Raises FileNotFoundError."""

    async def fetch(self, folder: Path) -> None:
        """Have a folder in its place on this disk, whole. Raises FileNotFoundError if it is nowhere."""

    def borrow(self, folder: Path) -> AbstractAsyncContextManager[Path]:
        """Give a folder with the content of `folder` to read from, for a while. Raises FileNotFoundError."""

    async def exists(self, folder: Path) -> bool:
        """Tell whether a folder is kept."""

    async def changed_at(self, path: Path) -> float | None:
        """Return when a folder or file came, or came again (Unix time); None if it is not kept."""

    async def folders(self, parent: Path, *, depth: int) -> list[Kept]:
        """List the folders so many levels below `parent`, those that were set aside under their own names, too."""

    async def children(self, parent: Path) -> dict[str, float]:
        """List what lies in `parent`, however little of it: names, and when something of each came last (Unix time)."""

    async def set_aside(self, folder: Path) -> float | None:
        """Hide a folder, which is to be deleted or put back; returns its `changed_at`, None if there is none."""

    async def put_back(self, folder: Path) -> None:
        """Undo set_aside(), unless the folder has come again meanwhile; nothing happens if none was set aside."""

    async def remove(self, folder: Path) -> None:
        """Delete a folder with all below it, also if it was set aside."""

    async def read(self, file: Path) -> Content:
        """Open a file, of a kept folder or kept alone. Raises FileNotFoundError."""

    async def mark(self, file: Path) -> None:
        """Keep an empty file that belongs to no folder; one that is there counts as new."""

    async def keep_file(self, file: Path) -> None:
        """Have a file kept that is in its place on this disk and belongs to no folder."""

    async def fetch_file(self, file: Path) -> None:
        """Have such a file in its place on this disk, as it is kept now. Raises FileNotFoundError."""

    async def copy_file(self, source: Path, target: Path) -> None:
        """Give the bytes of a file, which stay the same for ever, a second name. Raises FileNotFoundError."""

    async def files(self, folder: Path) -> dict[str, float]:
        """List the files directly in `folder` that belong to no folder: names, and when each came (Unix time)."""

    async def write_files(self, files: Mapping[Path, bytes]) -> None:
        """Keep small files that belong to no folder, in place of those that were there; each is whole or as before."""

    async def read_files(self, files: Iterable[Path]) -> dict[Path, bytes]:
        """Read small files that belong to no folder; those that are not kept are left out."""

    async def delete(self, *files: Path) -> None:
        """Delete files that belong to no folder."""

    async def check(self) -> None:
        """See whether the store answers."""


async def read_whole(blobs: Blobs, file: Path) -> bytes:
    """Read a small file. Raises FileNotFoundError, StorageUnavailable, OSError."""
    content = await blobs.read(file)
    return b"".join([block async for block in content.blocks])
