"""Records of the database as files beside it, so that it can be made again from the data folder alone.

    records/database.json            which database they are of, and in which form
    records/<family>/=<name>.json    one record each: shared/store/entries.py

Nothing else reads or writes there. Each file appears whole or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import msgspec

from shared.errors import InvalidRequest
from shared.paths import write_atomic, write_together
from shared.store import entries
from shared.store.entries import Entry
from shared.store.schema import Schema

_LONGEST_NAME = 150
_decode_schema = msgspec.json.Decoder(Schema).decode


class RecordFiles:
    """The files in one folder. Its methods block; OSError is raised when the disk does not take or give them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._database = folder / "database.json"

    def database(self) -> Schema | None:
        """Return which database the records are of; None when there are none. Raises InvalidRequest for a bad file."""
        try:
            return _decode_schema(self._database.read_bytes())
        except FileNotFoundError:
            return None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"{self._database}: {error}") from error

    def claim(self, schema: Schema) -> None:
        """Say which database the records are of from now on."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._database, msgspec.json.format(msgspec.json.encode(schema)))

    def write(self, encoded: Mapping[str, bytes]) -> None:
        """Write encoded entries, by key; the same name again replaces it."""
        files = {self._path(key): data for key, data in encoded.items()}
        for folder in {path.parent for path in files}:
            folder.mkdir(parents=True, exist_ok=True)
        write_together(files, mode=0o600)  # webhooks' secrets are among them

    def remove(self, key: str) -> None:
        """Forget an entry; twice is the same as once."""
        self._path(key).unlink(missing_ok=True)

    def read(self) -> Iterator[tuple[Path, Entry | None, bytes]]:
        """Give each file with its entry, None if it is not one, and its bytes, in a fixed order."""
        for path in sorted(self._folder.glob("*/*.json")):
            if path.name.startswith("."):  # on its way when its writer died
                continue
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            yield path, _entry(data), data

    def _path(self, key: str) -> Path:
        _, family, *rest = key.split(":", 2)
        name = quote(rest[0] if rest else family, safe=" ")
        if len(name) > _LONGEST_NAME:
            name = f"{name[:60]}-{hashlib.sha256(key.encode()).hexdigest()}"
        return self._folder / family / f"={name}.json"


def _entry(data: bytes) -> Entry | None:
    try:
        return entries.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
