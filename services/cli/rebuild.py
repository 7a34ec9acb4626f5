"""`selftune rebuild`: make the registry again from what lies in the data folder, or in the bucket used instead.

Files come from the manifest beside their bytes, everything else from `records/`. Only what the database does not have
is written, so that running it again, or over a database that lost its last second, does no harm.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec

from services.cli.database import Say, database_of
from services.cli.stack import only_one
from shared import keys
from shared.adapters import WEIGHTS_NAME, adapter_digest
from shared.blobs.interface import Blobs
from shared.blobs.opening import open_blobs
from shared.errors import AdapterRejected, InvalidRequest
from shared.paths import Paths
from shared.record_files import RecordFiles
from shared.records import AdapterRecord, FileRecord
from shared.settings import Settings
from shared.store import entries
from shared.store.client import Client
from shared.store.entries import Entry
from shared.store.files import FileStore
from shared.store.schema import Schema, check_version, create_schema, ensure_schema, newest_version, read_schema

_REMARKABLE = frozenset(
    {
        *("job", "batch", "file", "upload", "adapter", "alias", "account", "webhook"),
        *("completion", "response", "eval", "eval_run", "flow"),
    }
)
"""Families that tell a database in use from one in which a service has only been started."""

_API_KEY, _FORMER = keys.family(keys.api_key("")), keys.family(keys.former_key(""))

_AT_ONCE = 20

_EARLIEST_TIME = 1e9
"""Larger scores are Unix times, smaller ones the order of creation."""


class Tally:
    """What was found, put back, and left out with the reason."""

    def __init__(self) -> None:
        self.added: Counter[str] = Counter()
        self.present: Counter[str] = Counter()
        self.skipped: list[str] = []

    def count(self, family: str, *, added: bool) -> None:
        (self.added if added else self.present)[family] += 1

    def lines(self) -> Iterator[str]:
        """Tell it, a line for each family and each thing left out."""
        for family in sorted(self.added.keys() | self.present.keys()):
            yield f"{family}: {self.added[family]} put back, {self.present[family]} there already"
        for reason in self.skipped:
            yield f"left out: {reason}"
        if not self.added and not self.present:
            yield "nothing was found"


def rebuild(settings: Settings, say: Say) -> None:
    """Fill the database of a data folder from the folder, or from its bucket; a new host's folder is made then.

    Raises InvalidRequest while the stack runs on it, and where no records are; StorageUnavailable.
    """
    paths = Paths(settings.home)
    if not settings.storage_url and not paths.records.is_dir():
        raise InvalidRequest(f"{paths.home} is no data folder with records: there is no {paths.records.name}/")
    paths.prepare()
    with only_one(paths.home), database_of(settings, paths.valkey) as url:
        tally = asyncio.run(_rebuild(url, settings, open_blobs(settings, paths)))
    for line in tally.lines():
        say(line)


async def _rebuild(url: str, settings: Settings, blobs: Blobs) -> Tally:
    files = RecordFiles(blobs)
    schema = await files.database()
    if schema is None:
        where = blobs.paths.records if blobs.is_local else f"{settings.storage_url}/records"
        raise InvalidRequest(f"{where}: database.json is missing, so nothing says what the records are of")
    tally = Tally()
    client = Client(url)
    try:
        await adopt(client, schema)
        await fill(client, blobs, _checked(files, tally), tally)
        await ensure_schema(client, settings)
    finally:
        await client.close()
    return tally


async def _checked(files: RecordFiles, tally: Tally) -> AsyncIterator[Entry]:
    async for path, entry in files.read():
        if entry is None:
            tally.skipped.append(f"{path}: it is no whole record")
        else:
            yield entry


async def adopt(client: Client, schema: Schema) -> None:
    """Make the database the one that records are of. Raises InvalidRequest when it has other ones, SchemaTooNew."""
    check_version(schema.version, newest_version())
    current = await read_schema(client)
    if not _REMARKABLE & (await entries.find(client)).keys():
        await client.call("DEL", keys.SCHEMA)
    elif current is None or current.id != schema.id:
        raise InvalidRequest(
            "the database holds records that are not of this data folder; give it an empty one, see redis_url"
        )
    elif current.version != schema.version:
        raise InvalidRequest(
            f"the database has form {current.version}, the records on disk have form {schema.version}; start the stack "
            "once, or empty the database"
        )
    await create_schema(client, schema)


async def fill(client: Client, blobs: Blobs, found: AsyncIterator[Entry], tally: Tally) -> None:
    """Put back the entries whose bytes are here, and every file that has a manifest.

    API keys come last: a value that is known as a former one does not come back as a key. Raises StoreUnavailable,
    StorageUnavailable.
    """
    held: list[Entry] = []
    former = set[str]()
    async for entry in found:
        if entry.family == _FORMER:
            former.add(_name(entry))
        if entry.family == _API_KEY:
            held.append(entry)
        else:
            await _put_back(client, blobs, entry, tally)
    for entry in held:
        if _name(entry) in former or await client.call("EXISTS", keys.former_key(_name(entry))):
            tally.skipped.append(f"{entry.record().get('id')}: it was replaced or revoked")
        else:
            await _put_back(client, blobs, entry, tally)
    store = FileStore(client)
    for record in await _recorded_files(blobs, tally):
        if not await store.exists(record.id):
            await store.add(record, produced=True)
            tally.count("file", added=True)


async def _put_back(client: Client, blobs: Blobs, entry: Entry, tally: Tally) -> None:
    reason = await _why_not(blobs, entry)
    if reason:
        tally.skipped.append(f"{_name(entry)}: {reason}")
        return
    tally.count(entry.family, added=await entries.put_back(client, entry))
    await _raise_counters(client, entry)


def _name(entry: Entry) -> str:
    return entry.key.split(":", 2)[-1]


async def _raise_counters(client: Client, entry: Entry) -> None:
    """Have what is made from now on come after what was put back."""
    orders = [place.score for place in entry.places if place.score is not None and place.score < _EARLIEST_TIME]
    if orders:
        await entries.raise_counter(client, keys.SEQUENCE, int(max(orders)))
    if entry.family == "adapter":
        await entries.raise_counter(client, keys.ADAPTER_NEXT_ID, int(entry.record().get("int_id", 0)))


async def _why_not(blobs: Blobs, entry: Entry) -> str:
    """Say why a record is left out; empty if it is not."""
    if entry.family == "file" and not await _is_kept(blobs, blobs.paths.file_content(entry.record()["id"])):
        return f"its bytes are not in {_place(blobs)}"
    if entry.family != "adapter":
        return ""
    adapter = msgspec.convert(entry.record(), AdapterRecord)
    folder = blobs.paths.home / adapter.folder
    if adapter.whole:
        return "" if await _is_kept(blobs, folder / "config.json") else f"its folder {adapter.folder} is not there"
    if not blobs.is_local:  # whoever fetches it compares its bytes
        is_kept = await _is_kept(blobs, folder / WEIGHTS_NAME)
        return "" if is_kept else f"its folder {adapter.folder} is not in the bucket"
    try:
        found = await asyncio.to_thread(adapter_digest, folder)
    except AdapterRejected as error:
        return f"its files cannot be read: {error.message}"
    return "" if found == adapter.sha256 else f"its files in {adapter.folder} are not those that it was made of"


async def _is_kept(blobs: Blobs, file: Path) -> bool:
    """Tell whether a file is there, in a folder that is whole."""
    return await blobs.exists(file.parent) and await blobs.changed_at(file) is not None


def _place(blobs: Blobs) -> str:
    return "the data folder" if blobs.is_local else "the bucket"


async def _recorded_files(blobs: Blobs, tally: Tally) -> list[FileRecord]:
    """Read the manifests, oldest first; a file with a mark was never acknowledged, or is being deleted."""
    paths = blobs.paths
    marked = await blobs.files(paths.unrecorded)
    kept = [each.folder for each in await blobs.folders(paths.files, depth=1) if not each.is_aside]
    manifests = [folder / "manifest.json" for folder in sorted(kept) if folder.name not in marked]
    found = []
    for start in range(0, len(manifests), _AT_ONCE):
        some = manifests[start : start + _AT_ONCE]
        read = await blobs.read_files(some)
        outcomes = await asyncio.gather(*(_file(blobs, manifest, read.get(manifest)) for manifest in some))
        for manifest, outcome in zip(some, outcomes, strict=True):
            if isinstance(outcome, str):
                tally.skipped.append(f"{manifest.parent.name}: {outcome}")
            else:
                found.append(outcome)
    return [record for _, _, record in sorted(found, key=lambda one: one[:2])]


async def _file(blobs: Blobs, manifest: Path, data: bytes | None) -> tuple[int, float, FileRecord] | str:
    """Return when a file was made, and when its manifest was written, with its record; or why it is left out."""
    try:
        if data is None:
            return "it has no manifest.json"
        record = msgspec.json.decode(data, type=FileRecord)
        size_bytes = (await blobs.read(manifest.with_name("content"))).size_bytes
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        return str(error)
    if record.id != manifest.parent.name or size_bytes != record.size_bytes:
        return f"its manifest does not fit its {size_bytes} bytes"
    return record.created_at, await blobs.changed_at(manifest) or 0.0, record
