"""Preferences by id and by project."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

import msgspec
from msgspec import Struct

from shared import keys
from shared.errors import NotFound
from shared.preference_records import PreferenceRecord
from shared.store import index
from shared.store.client import Client
from shared.store.portions import MAX_PORTION_BYTES, portions
from shared.store.storage import Storage

_decode = msgspec.json.Decoder(PreferenceRecord).decode
_encode = msgspec.json.Encoder().encode

_SCAN = 20
MAX_PAGE_BYTES = 16 << 20
"""Of conversations that are listed together, but for the last few."""


class Wanted(Struct, frozen=True, kw_only=True):
    """Which preferences are meant; None does not matter."""

    source: str | None = None
    voter: str | None = None
    metadata: Mapping[str, str] = {}
    """Pairs that they carry, all of them."""
    created_after: int | None = None
    created_before: int | None = None

    def fits(self, record: PreferenceRecord) -> bool:
        return (
            self.source in (None, record.source)
            and self.voter in (None, record.voter)
            and self.metadata.items() <= (record.metadata or {}).items()
            and self.is_between(record.created_at)
        )

    def is_between(self, created_at: int) -> bool:
        """Tell whether a Unix time is one of those that are meant, both ends among them."""
        is_late_enough = self.created_after is None or created_at >= self.created_after
        return is_late_enough and (self.created_before is None or created_at <= self.created_before)


class PreferenceStore:
    """The only writer of preferences, which count towards their project's storage; its default limit is
    `project_bytes`."""

    def __init__(self, client: Client, *, project_bytes: int | None = None) -> None:
        self._client = client
        self._storage = Storage(client, project_bytes=project_bytes)

    async def create(self, record: PreferenceRecord) -> PreferenceRecord:
        """Store a new preference, or return the one that has its id already. Raises RateLimited."""
        text = _encode(record)
        await self._storage.check_room(record.project, len(text))
        found = [
            keys.preference(record.id), keys.preferences(record.project), keys.SEQUENCE,
            keys.answers(record.project), keys.project_bytes(record.project),
        ]  # fmt: skip
        created = await self._client.script("create_preference", found, [record.id, record.project, text])
        return record if created else await self.get(record.id, project=record.project)

    async def get(self, preference_id: str, *, project: str) -> PreferenceRecord:
        """Raises NotFound when it is unknown or belongs to another project."""
        raw = await self._client.call("HGET", keys.preference(preference_id), "record")
        record = _decode(raw) if raw is not None else None
        if record is None or record.project != project:
            raise _unknown(preference_id)
        return record

    async def find(self, preference_id: str) -> PreferenceRecord | None:
        raw = await self._client.call("HGET", keys.preference(preference_id), "record")
        return None if raw is None else _decode(raw)

    async def remove(self, preference_id: str, *, project: str) -> None:
        """Raises NotFound, also when it was removed before."""
        listing = keys.preferences(project)
        found = [keys.preference(preference_id), keys.answers(project), keys.project_bytes(project), listing]
        if not await self._client.script("forget_answer", found, [project, preference_id, keys.place(listing, "")]):
            raise _unknown(preference_id)

    async def list(
        self, project: str, wanted: Wanted, *, after: str | None, limit: int, newest_first: bool
    ) -> tuple[Sequence[PreferenceRecord], bool]:
        """Return a page of those that are wanted, and whether there are more. Raises NotFound for an unknown `after`.

        A page whose conversations are large has fewer than `limit`.
        """
        found: list[PreferenceRecord] = []
        more, size = True, 0
        while more and len(found) <= limit and size < MAX_PAGE_BYTES:
            ids, more = await index.page(
                self._client, keys.preferences(project), after=after, limit=_SCAN, newest_first=newest_first
            )
            after = ids[-1] if ids else after
            async for some in self._read(ids):
                fitting = [record for record in some if wanted.fits(record)]
                size += sum(record.size_bytes for record in fitting)
                found += fitting
        return found[:limit], more or len(found) > limit

    async def all(self, project: str, wanted: Wanted) -> AsyncIterator[PreferenceRecord]:
        """Yield those that are wanted, oldest first; a few are in memory at a time."""
        after, more = None, True
        while more:
            ids, more = await index.page(
                self._client, keys.preferences(project), after=after, limit=_SCAN, newest_first=False
            )
            after = ids[-1] if ids else after
            async for some in self._read(ids):
                for record in filter(wanted.fits, some):
                    yield record

    async def _read(self, ids: Sequence[str]) -> AsyncIterator[Sequence[PreferenceRecord]]:
        """Read records, no more than MAX_PORTION_BYTES at a time; those that are gone are left out."""
        sizes = await self._client.together([("HSTRLEN", keys.preference(one), "record") for one in ids]) if ids else []
        for some in portions(ids, sizes, most_bytes=MAX_PORTION_BYTES):
            raws = await self._client.together([("HGET", keys.preference(one), "record") for one in some])
            yield [_decode(raw) for raw in raws if raw is not None]


def _unknown(preference_id: str) -> NotFound:
    return NotFound(f"No preference found with id '{preference_id[:100]}'.", param="preference_id")
