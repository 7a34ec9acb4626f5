"""Bearer keys. Only their SHA-256 is stored: a key has 256 random bits, so a plain hash cannot be searched."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from shared import ids, keys
from shared.errors import NotAuthenticated, NotFound
from shared.projects import ProjectRecord
from shared.records import DEFAULT_PROJECT, KeyRecord
from shared.store import index
from shared.store.client import Client
from shared.store.projects import without_record

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(KeyRecord).decode
_decode_project = msgspec.json.Decoder(ProjectRecord).decode


class Identity(Struct, frozen=True, kw_only=True):
    """Whose request it is."""

    key: KeyRecord
    project: ProjectRecord
    names_other_project: bool = False
    """Whether the client names a project that exists here and is not the key's."""


class KeyStore:
    """Keys by digest and by id. Those of an organization (kind `admin`, `built_in`) are listed apart from projects'."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def ensure(self, key: str, *, name: str, project: str = DEFAULT_PROJECT) -> None:
        """Make a key known that is kept outside the database; one that is known stays as it is."""
        digest = _digest(key)
        raw = await self._client.call("GET", keys.api_key(digest))
        if raw is not None and _decode(raw).id:
            return
        created_at = int(time.time()) if raw is None else _decode(raw).created_at
        record = KeyRecord(
            # from the digest, so that two processes that do this at once give it the same id
            id=_derived_id(digest), kind="built_in", project=project, name=name, created_at=created_at,
            redacted=_redacted(key),
        )  # fmt: skip
        await self._store(digest, record)

    async def authenticate(self, key: str, *, named_project: str = "") -> Identity:
        """Return whose the key is, in one round trip.

        Raises NotAuthenticated for a key that is unknown, expired, or of an archived project; the message shows no more
        than the key's ends.
        """
        digest = _digest(key)
        found = await self._client.script(
            "authenticate", [keys.api_key(digest), keys.key_used(digest)], [keys.project(""), named_project]
        )
        record = _decode(found[0]) if found else None
        if record is None or record.expired(time.time()):
            raise NotAuthenticated(f"Incorrect API key provided: {_masked(key)}.")
        project = _decode_project(found[1]) if found[1] else without_record(record.project)
        if project.archived_at is not None:
            raise NotAuthenticated(
                f"The project {project.id} that this API key belongs to is archived.", code="project_archived"
            )
        record = record if record.id else replace(record, id=_derived_id(digest))
        return Identity(key=record, project=project, names_other_project=bool(found[2]) and named_project != project.id)

    async def create(self, record: KeyRecord) -> tuple[KeyRecord, str]:
        """Store a new key as `record` describes it, and return the record with its id, and the key itself.

        Raises NotFound when the service account that is to own it is gone.
        """
        value = ids.new_api_key()
        record = replace(record, id=ids.new_key_id(), redacted=_redacted(value))
        if not await self._store(_digest(value), record):
            raise NotFound(f"No such service account: {record.service_account}", param="service_account_id")
        return record, value

    async def get(self, key_id: str, *, project: str | None) -> KeyRecord:
        """Look up a project's key, or with None one of the organization's. Raises NotFound."""
        return (await self._find(key_id, project))[1]

    async def list(
        self, project: str | None, *, after: str | None, limit: int, newest_first: bool = True
    ) -> tuple[Sequence[KeyRecord], bool]:
        """Return a page of a project's keys, or with None of the organization's, and whether there are more."""
        found, more = await index.page(
            self._client, _list_of(project), after=after, limit=limit, newest_first=newest_first
        )
        digests = [digest.decode() for digest in await self._many([keys.key_digest(key_id) for key_id in found])]
        return [_decode(raw) for raw in await self._many([keys.api_key(digest) for digest in digests])], more

    async def projects_of(self, key_ids: Sequence[str]) -> dict[str, str]:
        """Tell, by key id, which project keys belong to; unknown ids and keys of the organization are left out."""
        digests = [digest.decode() for digest in await self._many([keys.key_digest(key_id) for key_id in key_ids])]
        records = [_decode(raw) for raw in await self._many([keys.api_key(digest) for digest in digests])]
        return {record.id: record.project for record in records if record.kind == "project"}

    async def last_used(self, key_ids: Sequence[str]) -> dict[str, int]:
        """Tell, by key id, when keys were used last, to the minute."""
        digests = await self._all([keys.key_digest(key_id) for key_id in key_ids])
        used = await self._all([keys.key_used((digest or b"").decode()) for digest in digests])
        return {key_id: int(time) for key_id, time in zip(key_ids, used, strict=True) if time is not None}

    async def update(self, key_id: str, change: Callable[[KeyRecord], KeyRecord], *, project: str | None) -> KeyRecord:
        """Apply `change` to the newest record. Raises NotFound."""
        digest, record = await self._find(key_id, project)
        changed = [record]

        def rewrite(raw: bytes) -> bytes:
            changed[:] = [change(_decode(raw))]
            return _encode(changed[0])

        if not await index.replace(self._client, keys.api_key(digest), rewrite):
            raise _no_key(key_id)
        return changed[0]

    async def revoke(self, key_id: str, *, project: str | None) -> None:
        """Forget a key; it stops working at once. Raises NotFound."""
        digest, record = await self._find(key_id, project)
        await self._client.script(
            "revoke_key",
            [
                _list_of(project),
                keys.account_keys(record.service_account or ""),
                *(keys.api_key(digest), keys.key_used(digest), keys.key_digest(key_id)),
            ],
            [key_id, keys.place(_list_of(project), "")],
        )

    async def _store(self, digest: str, record: KeyRecord) -> bool:
        account = record.service_account or ""
        stored = await self._client.script(
            "create_key",
            [
                keys.api_key(digest),
                keys.key_digest(record.id),
                _list_of(record.project if record.kind == "project" else None),
                keys.SEQUENCE,
                keys.account(account),
                keys.account_keys(account),
            ],
            [record.id, _encode(record), digest, int(bool(account))],
        )
        return bool(stored)

    async def _find(self, key_id: str, project: str | None) -> tuple[str, KeyRecord]:
        digest = await self._client.call("GET", keys.key_digest(key_id))
        raw = await self._client.call("GET", keys.api_key(digest.decode())) if digest is not None else None
        record = _decode(raw) if raw is not None else None
        if digest is None or record is None or (record.project if record.kind == "project" else None) != project:
            raise _no_key(key_id)
        return digest.decode(), record

    async def _all(self, names: Sequence[str]) -> Sequence[bytes | None]:
        found: Sequence[bytes | None] = await self._client.call("MGET", *names) if names else []
        return found

    async def _many(self, names: Sequence[str]) -> Sequence[bytes]:
        return [raw for raw in await self._all(names) if raw is not None]


def _list_of(project: str | None) -> str:
    return keys.ADMIN_KEYS if project is None else keys.project_keys(project)


def _no_key(key_id: str) -> NotFound:
    return NotFound(f"No such API key: {key_id}", param="key_id")


def _derived_id(digest: str) -> str:
    return f"key_{digest[:24]}"


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _masked(key: str) -> str:
    return f"{key[:3]}***{key[-2:]}" if len(key) > 12 else "***"


def _redacted(key: str) -> str:
    """Show a key's prefix and the last four of its 43 random characters, as OpenAI does."""
    return f"sk-selftune-...{key[-4:]}" if len(key) > 20 else "***"
