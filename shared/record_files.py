"""Records of the database beside files and models, so that it can be made again from what is kept there alone.

    records/database.json            which database they are of, and in which form
    records/<family>/=<name>.json    one record each: shared/store/entries.py

They are in the data folder, or in the object store that is used instead. Nothing else reads or writes there. Each file
appears whole or not at all.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec

from shared.blobs.interface import Blobs
from shared.errors import InvalidRequest
from shared.store import entries
from shared.store.entries import Entry
from shared.store.schema import Schema

_LONGEST_NAME = 150
_AT_ONCE = 100
_decode_schema = msgspec.json.Decoder(Schema).decode


class RecordFiles:
    """The files of one store. Its methods raise OSError and StorageUnavailable as those of Blobs do."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._folder = blobs.paths.records
        self._database = self._folder / "database.json"

    async def database(self) -> Schema | None:
        """Return which database the records are of; None when there are none. Raises InvalidRequest for a bad file."""
        data = (await self._blobs.read_files([self._database])).get(self._database)
        try:
            return None if data is None else _decode_schema(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"{self._database}: {error}") from error

    async def claim(self, schema: Schema) -> None:
        """Say which database the records are of from now on."""
        await self._blobs.write_files({self._database: msgspec.json.format(msgspec.json.encode(schema))})

    async def write(self, encoded: Mapping[str, bytes]) -> None:
        """Write encoded entries, by key; the same name again replaces it."""
        await self._blobs.write_files({self._path(key): data for key, data in encoded.items()})

    async def remove(self, keys: Iterable[str]) -> None:
        """Forget entries; twice is the same as once."""
        await self._blobs.delete(*map(self._path, keys))

    async def read(self) -> AsyncIterator[tuple[Path, Entry | None]]:
        """Give each file with its entry, None if it is not one, in a fixed order."""
        for family in sorted(await self._blobs.children(self._folder)):
            names = sorted(await self._blobs.files(self._folder / family))
            whole = [name for name in names if name.endswith(".json") and not name.startswith(".")]
            for start in range(0, len(whole), _AT_ONCE):
                some = whole[start : start + _AT_ONCE]
                found = await self._blobs.read_files(self._folder / family / name for name in some)
                for pair in await asyncio.to_thread(_entries, sorted(found.items())):
                    yield pair

    def _path(self, key: str) -> Path:
        _, family, *rest = key.split(":", 2)
        name = quote(rest[0] if rest else family, safe=" ")
        if len(name) > _LONGEST_NAME:
            name = f"{name[:60]}-{hashlib.sha256(key.encode()).hexdigest()}"
        return self._folder / family / f"={name}.json"


def _entries(files: Sequence[tuple[Path, bytes]]) -> list[tuple[Path, Entry | None]]:
    return [(path, _entry(data)) for path, data in files]


def _entry(data: bytes) -> Entry | None:
    try:
        return entries.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
