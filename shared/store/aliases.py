"""Aliases by project, with their histories."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from shared import keys
from shared.alias_records import AliasRecord
from shared.errors import Conflict, NotFound
from shared.schemas.aliases import AliasRevision
from shared.store import index
from shared.store.client import Argument, Client

MAX_ALIASES = 1000
"""Of one project."""
MAX_REVISIONS = 200
"""Of one alias; the oldest are forgotten."""

Change = tuple[AliasRecord, AliasRevision]

_decode = msgspec.json.Decoder(AliasRecord).decode
_decode_revision = msgspec.json.Decoder(AliasRevision).decode
_encode = msgspec.json.Encoder().encode


class AliasStore:
    """Aliases, newest first. One that is changed has become another since it was read, or stays as it is."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def create(self, record: AliasRecord, entry: AliasRevision) -> None:
        """Raises Conflict when the name is taken, or the project has MAX_ALIASES already."""
        created = await self._client.script(
            "create_alias",
            [
                keys.alias(record.project, record.name),
                keys.aliases(record.project),
                keys.SEQUENCE,
                keys.alias_history(record.uid),
            ],
            [record.name, _encode(record), _encode(entry), MAX_ALIASES],
        )
        if created == 0:
            raise Conflict(f"The project has an alias '{record.name}' already.", code="alias_exists", param="name")
        if created < 0:
            raise Conflict(f"The project has {MAX_ALIASES} aliases, which is the limit; delete one first.")

    async def get(self, name: str, *, project: str) -> AliasRecord:
        """Raises NotFound when the project has no such alias."""
        return (await self._read(name, project))[0]

    async def find(self, name: str, *, project: str) -> AliasRecord | None:
        raw = await self._client.call("GET", keys.alias(project, name))
        return None if raw is None else _decode(raw)

    async def list(self, project: str, *, after: str | None, limit: int) -> tuple[Sequence[AliasRecord], bool]:
        """Return a page, newest first, and whether there are more."""
        return await index.records(
            self._client,
            keys.aliases(project),
            lambda name: keys.alias(project, name),
            _decode,
            after=after,
            limit=limit,
        )

    async def all(self, project: str) -> Sequence[AliasRecord]:
        """List every alias of a project, newest first."""
        return (await self.list(project, after=None, limit=MAX_ALIASES))[0]

    async def change(
        self,
        name: str,
        change: Callable[[AliasRecord], Change | None],
        *,
        project: str,
        expected_revision: int | None = None,
    ) -> AliasRecord:
        """Apply `change` to the newest record, again whenever somebody else wrote meanwhile; None leaves it as it is.

        Raises NotFound, and Conflict with code `alias_moved` when its revision is not the expected one.
        """
        while True:
            current, raw = await self._read(name, project)
            check_revision(current, expected_revision)
            changed = change(current)
            if changed is None:
                return current
            record, entry = changed
            swapped = await self._client.script(
                "change_alias",
                [
                    *(keys.alias(project, name), keys.alias_history(current.uid), keys.TENDED_ALIASES, keys.OUTCOMES),
                    keys.alias_proposals(current.uid),
                    *_samples_keys(current.uid),
                ],
                [
                    *(raw, _encode(record), _encode(entry), MAX_REVISIONS, _member(record)),
                    *(int(record.is_tended), int(record.goes_on_noting(current)), _outcome(record, entry)),
                ],
            )
            if swapped:
                return record

    async def delete(self, name: str, *, project: str) -> None:
        """Forget an alias, its history and its shadow's answers. Raises NotFound."""
        deleted = False
        while not deleted:
            current, raw = await self._read(name, project)
            places = [
                keys.alias(project, name),
                keys.aliases(project),
                keys.alias_history(current.uid),
                keys.TENDED_ALIASES,
                keys.shadow_pairs(current.uid),
                *_samples_keys(current.uid),
                *(keys.gate_runs(current.uid), keys.alias_windows(current.uid), keys.alias_proposals(current.uid)),
            ]
            arguments: list[Argument] = [raw, name, keys.place(keys.aliases(project), ""), _member(current)]
            deleted = bool(await self._client.script("delete_alias", places, arguments))

    async def tended(self) -> Sequence[tuple[str, str]]:
        """List project and name of the aliases, of all projects, for which something is to be done now and then."""
        members = await self._client.call("SMEMBERS", keys.TENDED_ALIASES)
        return sorted((project, name) for project, _, name in (one.decode().partition(" ") for one in members))

    async def history(self, uid: str) -> Sequence[AliasRevision]:
        """List the last MAX_REVISIONS changes, newest first."""
        return [_decode_revision(raw) for raw in await self._client.call("LRANGE", keys.alias_history(uid), 0, -1)]

    async def _read(self, name: str, project: str) -> tuple[AliasRecord, bytes]:
        raw = await self._client.call("GET", keys.alias(project, name))
        if raw is None:
            raise NotFound(f"No such alias: {name[:200]}", code="alias_not_found", param="alias")
        return _decode(raw), raw


def _member(record: AliasRecord) -> str:
    return f"{record.project} {record.name}"


def _samples_keys(uid: str) -> Sequence[str]:
    """Return where that is which goes with an alias's monitor."""
    return (
        keys.alias_due_samples(uid), keys.alias_samples(uid), keys.alias_first_samples(uid), keys.alias_training(uid),
        keys.alias_seen_samples(uid),
    )  # fmt: skip


def _outcome(record: AliasRecord, entry: AliasRevision) -> str:
    """Name what webhooks are told of a change, "" for nothing."""
    if not (entry.automatic and entry.action == "rolled_back"):
        return ""
    return f"{alias_event_id(record.project, record.name, entry.created_at, str(entry.revision))} rolled_back"


def alias_event_id(project: str, name: str, at: int, place: str) -> str:
    """Name what has happened to an alias at a Unix time, for webhooks; `place` tells it from others of that time.

    None of them holds a space or a slash, see `alias_event`.
    """
    return f"alias/{project}/{at}/{place}/{name}"


def check_revision(record: AliasRecord, expected: int | None) -> None:
    """Raises Conflict with code `alias_moved` when an alias has another revision than the expected one."""
    if expected not in (None, record.revision):
        raise Conflict(
            f"The alias '{record.name}' is at revision {record.revision}, not {expected}: it was changed meanwhile.",
            code="alias_moved",
            param="expected_revision",
        )
