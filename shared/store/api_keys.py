"""Bearer keys. They are stored under a keyed hash; the key itself is shown once and then known to its holder alone.

Comparing happens in Redis, by looking a digest up that nobody can form without the secret: how long it takes tells
nothing of a key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from shared import ids, keys
from shared.errors import KeySecretMismatch, NotAuthenticated, NotFound
from shared.key_hash import KeyHash
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
    """Keys by digest and by id. Those of an organization (kind `admin`, `built_in`) are listed apart from projects'.

    Whatever looks a key up by its value raises KeySecretMismatch when the database's digests have another secret.
    """

    def __init__(self, client: Client, key_hash: KeyHash) -> None:
        self._client = client
        self._hash = key_hash

    async def ensure(self, key: str, *, name: str, project: str = DEFAULT_PROJECT, folder: str = "") -> None:
        """Make a key known that is kept outside the database; one that is known stays as it is.

        With the id of the data `folder` that keeps it, it takes the place of the key that was there before, which stops
        working at once.
        """
        digest = self._hash.digest(key)
        raw = await self._client.call("GET", keys.api_key(digest))
        created_at = int(time.time()) if raw is None else _decode(raw).created_at
        record = KeyRecord(
            # from the digest, so that two processes that do this at once give it the same id
            id=_derived_id(digest), kind="built_in", project=project, name=name, created_at=created_at,
            redacted=_redacted(key),
        )  # fmt: skip
        outcome = await self._client.script(
            "ensure_key",
            [
                keys.api_key(digest),
                keys.key_digest(record.id),
                keys.ADMIN_KEYS,
                keys.SEQUENCE,
                keys.BUILT_IN_KEYS,
                keys.KEY_CHECK,
            ],
            [
                *(record.id, _encode(record), digest, folder, self._hash.check),
                *_VALUES,
                keys.key_digest(""),
                keys.place(keys.ADMIN_KEYS, ""),
            ],
        )
        if outcome < 0:
            raise _mismatch()

    async def check_secret(self) -> None:
        """Raises KeySecretMismatch when the database's keys were hashed with another secret than this server's."""
        check = await self._client.call("GET", keys.KEY_CHECK)
        if check is not None and check.decode() != self._hash.check:
            raise _mismatch()

    async def authenticate(self, key: str, *, named_project: str = "") -> Identity:
        """Return whose the key is, in one round trip.

        Raises NotAuthenticated for a key that is unknown, expired, replaced longer ago than its grace, or of an
        archived project; the message shows no more than the key's ends.
        """
        digest = self._hash.digest(key)
        status, *found = await self._client.script(
            "authenticate",
            [keys.api_key(digest), keys.key_used(digest), keys.former_key(digest), keys.KEY_CHECK],
            [
                *(keys.project(""), named_project, self._hash.check),
                *(keys.api_key(""), keys.key_used(""), keys.key_digest("")),
            ],
        )
        if status == b"mismatch":
            raise _mismatch()
        record = _decode(found[0]) if status == b"ok" else None
        if record is None or record.expired(time.time()):
            key_id = found[0].decode() if status == b"former" else "" if record is None else record.id
            raise NotAuthenticated(f"Incorrect API key provided: {_masked(key)}.", key_id=key_id)
        project = _decode_project(found[1]) if found[1] else without_record(record.project)
        if project.archived_at is not None:
            raise NotAuthenticated(
                f"The project {project.id} that this API key belongs to is archived.",
                code="project_archived",
                key_id=record.id,
            )
        record = record if record.id else replace(record, id=_derived_id(digest))
        return Identity(key=record, project=project, names_other_project=bool(found[2]) and named_project != project.id)

    async def create(self, record: KeyRecord) -> tuple[KeyRecord, str]:
        """Store a new key as `record` describes it, and return the record with its id, and the key itself.

        Raises NotFound when the service account that is to own it is gone.
        """
        value = ids.new_api_key()
        record = replace(record, id=ids.new_key_id(), redacted=_redacted(value))
        if not await self._store(self._hash.digest(value), record):
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
        while True:  # until it is not given another value meanwhile
            digest, record = await self._find(key_id, project)
            changed = [record]

            def rewrite(raw: bytes, changed: list[KeyRecord] = changed) -> bytes:
                changed[:] = [change(_decode(raw))]
                return _encode(changed[0])

            if await index.replace(self._client, keys.api_key(digest), rewrite):
                return changed[0]

    async def rotate(
        self, key_id: str, check: Callable[[KeyRecord], None], *, project: str | None, grace_s: int
    ) -> tuple[KeyRecord, str]:
        """Give a key another value, and return its record and that value. Id, name, scopes and limits stay.

        The value that it had works for `grace_s` more seconds, and those before it no longer than that. `check` may
        refuse by raising. Raises NotFound.
        """
        value = ids.new_api_key()
        new_digest = self._hash.digest(value)
        while True:
            digest, raw = await self._find_raw(key_id, project)
            check(_decode(raw))
            formers_until = int(time.time()) + grace_s
            record = replace(_decode(raw), redacted=_redacted(value), formers_until=formers_until)
            done = await self._client.script(
                "rotate_key",
                [
                    keys.key_digest(key_id),
                    *(keys.api_key(digest), keys.api_key(new_digest)),
                    *(keys.key_used(digest), keys.key_used(new_digest)),
                    keys.former_key(digest),
                ],
                [digest, raw, new_digest, _encode(record), key_id, formers_until, *_VALUES],
            )
            if done:
                return record, value

    async def revoke(self, key_id: str, *, project: str | None) -> None:
        """Forget a key; it stops working at once. Raises NotFound."""
        _, record = await self._find(key_id, project)
        await self._client.script(
            "revoke_key",
            [_list_of(project), keys.account_keys(record.service_account or ""), keys.key_digest(key_id)],
            [key_id, keys.place(_list_of(project), ""), *_VALUES],
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
        digest, raw = await self._find_raw(key_id, project)
        return digest, _decode(raw)

    async def _find_raw(self, key_id: str, project: str | None) -> tuple[str, bytes]:
        while True:
            digest = await self._client.call("GET", keys.key_digest(key_id))
            raw = await self._client.call("GET", keys.api_key(digest.decode())) if digest is not None else None
            if digest is not None and raw is None and await self._client.call("GET", keys.key_digest(key_id)) != digest:
                continue  # it was given another value between the two
            record = _decode(raw) if raw is not None else None
            if digest is None or record is None or (record.project if record.kind == "project" else None) != project:
                raise _no_key(key_id)
            assert isinstance(raw, bytes)
            return digest.decode(), raw

    async def _all(self, names: Sequence[str]) -> Sequence[bytes | None]:
        found: Sequence[bytes | None] = await self._client.call("MGET", *names) if names else []
        return found

    async def _many(self, names: Sequence[str]) -> Sequence[bytes]:
        return [raw for raw in await self._all(names) if raw is not None]


_VALUES = (keys.api_key(""), keys.key_used(""), keys.former_key(""))
"""Beginnings of the keys that a script needs to take a key's value out of use."""


def _mismatch() -> KeySecretMismatch:
    return KeySecretMismatch(
        "The API keys in the database were hashed with another secret than this server's; give it the key_hash.key, or "
        "the setting key_secret, of the servers that filled the database."
    )


def _list_of(project: str | None) -> str:
    return keys.ADMIN_KEYS if project is None else keys.project_keys(project)


def _no_key(key_id: str) -> NotFound:
    return NotFound(f"No such API key: {key_id}", param="key_id")


def _derived_id(digest: str) -> str:
    return f"key_{digest[:24]}"


def _masked(key: str) -> str:
    return f"{key[:3]}***{key[-2:]}" if len(key) > 12 else "***"


def _redacted(key: str) -> str:
    """Show a key's prefix and the last four of its 43 random characters, as OpenAI does."""
    return f"sk-selftune-...{key[-4:]}" if len(key) > 20 else "***"
