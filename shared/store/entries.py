"""Records as they can be kept outside the database, and put back: what one consists of, and where it is listed.

An entry is one record with everything that belongs to it, read in one transaction: the values of its keys as they are,
and its places in sets and lists of others. So entries may be read one after the other while everybody works, and any
subset of them makes a sound database: nothing but references among records may point nowhere, as after a deletion.

Which keys make a record is in KINDS. A key of a family that is neither there nor in LEFT_OUT is an entry of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import Struct

from shared import keys
from shared.store.client import Argument, Client

Type = Literal["string", "hash", "list", "set", "zset", "stream"]
Text = str | bytes
Record = Mapping[str, Any]
"""A decoded record; its fields are those of the Structs in shared/records.py and beside it."""


class Raw(Struct, frozen=True):
    """Bytes that are no UTF-8, in base64."""

    base64: bytes


Cell = str | Raw


class Value(Struct, frozen=True, kw_only=True):
    """What a key holds. A row is, by type: the string; a field and its value; an item; a member, in a zset with its
    score; an entry's id, fields and values."""

    key: str
    type: Type
    rows: list[list[Cell]]
    expires_at_ms: int | None = None


class Place(Struct, frozen=True, kw_only=True):
    """A record's place in a set, or with a score in a sorted one."""

    key: str
    member: str
    score: float | None = None


class Entry(Struct, frozen=True, kw_only=True):
    """One record."""

    key: str
    values: list[Value]
    places: list[Place] = []

    @property
    def family(self) -> str:
        return keys.family(self.key)

    def record(self) -> dict[str, Any]:
        """Decode the record itself."""
        return decode_record(self.values[0])


Where = tuple[str, str]
"""A key and a member in it."""


def _nothing(_name: str, _record: Record) -> Sequence[Any]:
    return ()


@dataclass(frozen=True)
class Kind:
    """How records of one family are kept. Functions are given the last part of the record's key, and the record."""

    type: Type
    companions: Callable[[str, Record], Sequence[tuple[str, Type]]] = _nothing
    """Further keys that belong to it."""
    ranks: Callable[[str, Record], Sequence[Where]] = _nothing
    """Places in sorted sets."""
    memberships: Callable[[str, Record], Sequence[Where]] = _nothing
    """Places in sets."""
    mirrored: bool = True
    """Whether it is written beside the database while everybody works; the others are in backups alone."""
    unkept_fields: tuple[str, ...] = ()
    """Fields of the hash that mean nothing to another database."""
    at_once: int = 100
    """How many are read together."""


def _key_list(record: Record) -> str:
    return keys.project_keys(record["project"]) if record.get("kind", "project") == "project" else keys.ADMIN_KEYS


def _counted_answer(name: str, stored: Record) -> Sequence[Where]:
    return [(keys.answers(stored["project"]), f"{name} {stored['counted']}")] if "counted" in stored else []


def _kind_of_flow(name: str) -> str:
    return name.partition(" ")[0]


KINDS: Mapping[str, Kind] = {
    keys.family(keys.former_key("")): Kind("string"),
    "job": Kind(
        "hash",
        companions=lambda name, _: [(keys.job_events(name), "stream"), (keys.job_checkpoints(name), "list")],
        ranks=lambda name, job: [
            (keys.jobs(job["project"]), name),
            (keys.OUTCOMES, f"{name} {job['status']}"),
        ],
        memberships=lambda name, job: [(keys.ACTIVE_JOBS, name), (keys.project_jobs(job["project"]), name)],
        unkept_fields=("nonces", "owner", "claims"),
        at_once=10,
    ),
    "batch": Kind(
        "hash",
        ranks=lambda name, batch: [
            (keys.batches(batch["project"]), name),
            (keys.ACTIVE_BATCHES, name),
            (keys.OUTCOMES, f"{name} {batch['status']}"),
        ],
        memberships=lambda name, batch: [(keys.file_batches(batch["input_file_id"]), name)],
        unkept_fields=("owner", "claims"),
    ),
    "eval_run": Kind(
        "hash",
        companions=lambda name, _: [
            (keys.eval_tally(name), "hash"),
            (keys.eval_items(name), "hash"),
            (keys.eval_marks(name), "string"),
            (keys.eval_drafts(name), "hash"),
            (keys.ab_votes(name), "hash"),
        ],
        ranks=lambda name, run: [
            (keys.eval_runs(run["eval_id"]), name),
            (keys.ACTIVE_EVAL_RUNS, name),
            *_counted_answer(name, run),
            (keys.answers(run["project"]), f"{name} results {run.get('result_bytes', 0)}"),
        ],
        memberships=lambda name, run: [
            (keys.active_runs(run["project"]), name),
            (keys.file_batches(run.get("file_id", "")), name),
        ],
        mirrored=False,
        unkept_fields=("owner", "claims"),
        at_once=1,
    ),
    "eval": Kind(
        "string",
        ranks=lambda name, one: [(keys.evals(one["project"]), name), (keys.changed_evals(one["project"]), name)],
    ),
    "flow": Kind(
        "hash",
        ranks=lambda name, flow: [
            (keys.flows(_kind_of_flow(name), flow["project"]), flow["id"]),
            (keys.active_flows(_kind_of_flow(name)), flow["id"]),
        ],
        memberships=lambda name, flow: [(keys.active_project_flows(_kind_of_flow(name), flow["project"]), flow["id"])],
        unkept_fields=("owner", "claims"),
    ),
    "alias": Kind(
        "string",
        companions=lambda _, alias: [
            (keys.alias_history(alias["uid"]), "list"),
            (keys.gate_runs(alias["uid"]), "hash"),
            (keys.alias_first_samples(alias["uid"]), "list"),
            (keys.alias_seen_samples(alias["uid"]), "hash"),
            (keys.alias_windows(alias["uid"]), "list"),
            (keys.alias_proposals(alias["uid"]), "hash"),
        ],
        ranks=lambda _, alias: [(keys.aliases(alias["project"]), alias["name"])],
        memberships=lambda _, alias: [(keys.TENDED_ALIASES, f"{alias['project']} {alias['name']}")],
    ),
    "upload": Kind(
        "hash",
        companions=lambda name, _: [(keys.upload_parts(name), "hash")],
        ranks=lambda name, _: [(keys.UPLOADS, name)],
        mirrored=False,
        unkept_fields=("counted",),
    ),
    "file": Kind(
        "string",
        ranks=lambda name, file: [(keys.files(file["project"]), name), (keys.EXPIRING_FILES, name)],
        mirrored=False,
    ),
    "adapter": Kind(
        "string",
        companions=lambda name, _: [(keys.permissions(name), "hash"), (keys.model_settings(name), "hash")],
        memberships=lambda name, adapter: [
            (keys.adapters(adapter["base"]), name),
            (keys.models(adapter["project"]), name),
            (keys.PINNED_ADAPTERS, name),
        ],
    ),
    "completion": Kind(
        "hash",
        ranks=lambda name, stored: [(keys.completions(stored["project"]), name), *_counted_answer(name, stored)],
        mirrored=False,
        at_once=20,
    ),
    "response": Kind("hash", ranks=lambda name, stored: _counted_answer(name, stored), mirrored=False, at_once=20),
    "preference": Kind(
        "hash",
        ranks=lambda name, stored: [(keys.preferences(stored["project"]), name), *_counted_answer(name, stored)],
        mirrored=False,
        at_once=20,
    ),
    "idempotency": Kind("string", mirrored=False),
    "webhook": Kind("string", ranks=lambda name, webhook: [(keys.webhooks(webhook["project"]), name)]),
    "webhook_delivery": Kind("string", ranks=lambda name, _: [(keys.WEBHOOK_QUEUE, name)], mirrored=False),
    keys.family(keys.api_key("")): Kind(
        "string",
        companions=lambda _, key: [(keys.key_digest(key["id"]), "string")] if key.get("id") else [],
        ranks=lambda _, key: [(_key_list(key), key["id"])] if key.get("id") else [],
        memberships=lambda _, key: (
            [(keys.account_keys(key["service_account"]), key["id"])] if key.get("service_account") else []
        ),
    ),
    "account": Kind("string", ranks=lambda name, account: [(keys.accounts(account["project"]), name)]),
    "project": Kind("string", ranks=lambda name, _: [(keys.PROJECTS, name)]),
    "adapter_uses": Kind("zset", mirrored=False),
    "usage": Kind("hash", mirrored=False),
    "training_pace": Kind("hash", mirrored=False),
    keys.family(keys.AUDIT_PENDING): Kind("hash", mirrored=False),
    keys.family(keys.AUDIT): Kind("stream", mirrored=False),
}
"""By family. What refers to others comes first, so that what it refers to is in a backup, too; former values of
keys come first of all, so that none of them is kept as a key's only."""

COUNTERS = frozenset({keys.SEQUENCE, keys.ADAPTER_NEXT_ID})
"""Entries of which the larger value holds."""

_LISTED = frozenset(
    keys.family(key)
    for key in (
        *(keys.jobs(""), keys.OUTCOMES, keys.ACTIVE_JOBS, keys.project_jobs(""), keys.job_events("")),
        *(keys.job_checkpoints(""), keys.batches(""), keys.ACTIVE_BATCHES, keys.file_batches("")),
        *(keys.eval_runs(""), keys.ACTIVE_EVAL_RUNS, keys.eval_tally(""), keys.eval_items(""), keys.eval_marks("")),
        *(keys.active_runs(""), keys.eval_drafts(""), keys.evals(""), keys.changed_evals("")),
        *(keys.flows("", ""), keys.active_flows(""), keys.active_project_flows("", "")),
        *(keys.gate_runs(""), keys.alias_first_samples(""), keys.alias_windows(""), keys.alias_proposals("")),
        *(keys.TENDED_ALIASES, keys.alias_seen_samples("")),
        *(keys.alias_history(""), keys.aliases(""), keys.upload_parts(""), keys.UPLOADS, keys.files("")),
        *(keys.EXPIRING_FILES, keys.permissions(""), keys.model_settings(""), keys.adapters(""), keys.models("")),
        *(keys.PINNED_ADAPTERS, keys.shared_models(""), keys.completions(""), keys.webhooks("")),
        *(keys.answers(""), keys.ab_votes(""), keys.preferences("")),
        *(keys.WEBHOOK_QUEUE, keys.key_digest(""), keys.project_keys(""), keys.ADMIN_KEYS, keys.account_keys("")),
        *(keys.accounts(""), keys.PROJECTS),
    )
)
"""What entries of KINDS bring along."""

LEFT_OUT = frozenset(
    keys.family(key)
    for key in (
        *(keys.SCHEMA, keys.SCHEMA_LOCK, keys.RECORDER_LOCK, keys.job_lease(""), keys.batch_lease("")),
        *(keys.eval_run_lease(""), keys.flow_lease("", ""), keys.upload_lock("")),
        *(keys.request_bucket(""), keys.token_bucket(""), keys.place("", ""), keys.alias_traffic("", 0)),
        *(keys.ADAPTER_CHANGES, keys.residency(""), keys.REPLICAS, keys.replica(""), keys.WORKERS, keys.worker("")),
        *(keys.key_used(""), keys.project_bytes(""), keys.shadow_pairs(""), keys.TENDING_LOCK),
        *(keys.SCORINGS, keys.scoring(""), keys.scoring_replies("")),
        *(keys.alias_due_samples(""), keys.alias_samples(""), keys.alias_training(""), keys.alias_hour("", 0)),
    )
)
"""What lives for seconds or hours, is worked out again, or is no loss."""

_ALONE = Kind("string")
_PIECE = 500
"""Rows that go into one command."""

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Entry).decode


def kind_of(family: str) -> Kind:
    """Return how records of a family are kept."""
    return KINDS.get(family, _ALONE)


async def find(client: Client) -> dict[str, list[str]]:
    """Return the keys of all records by family, in the order of KINDS, the families that are not there last."""
    found: dict[str, set[str]] = {family: set() for family in KINDS}
    cursor = 0
    while True:
        cursor, places = await client.call("SCAN", cursor, "MATCH", keys.EVERYTHING, "COUNT", 1000)
        for place in places:
            key = place.decode()
            family = keys.family(key)
            if family not in _LISTED and family not in LEFT_OUT:
                found.setdefault(family, set()).add(key)
        if not cursor:
            ordered = [*KINDS, *sorted(found.keys() - KINDS.keys())]
            return {family: sorted(found[family]) for family in ordered if found[family]}


async def read(client: Client, family: str, names: Sequence[str], *, stories: bool = True) -> AsyncIterator[Entry]:
    """Read the records with these keys; those that are gone meanwhile are left out. Raises StoreUnavailable.

    Without `stories` the streams that belong to them stay unread.
    """
    kind = kind_of(family)
    for start in range(0, len(names), kind.at_once):
        for entry in await _read_some(client, kind, family in KINDS, names[start : start + kind.at_once], stories):
            yield entry


async def _read_some(client: Client, kind: Kind, is_known: bool, names: Sequence[str], stories: bool) -> list[Entry]:
    types: Sequence[Any] = [kind.type] * len(names)
    if not is_known:
        types = [told.decode() for told in await client.together([("TYPE", name) for name in names])]
    heads = await client.together([_reading(name, type_) for name, type_ in zip(names, types, strict=True)])
    plans = []
    for name, type_, raw in zip(names, types, heads, strict=True):
        if type_ != "none" and raw:
            plans.append(_plan(kind, _value(name, type_, raw, None, kind.unkept_fields), stories))
    commands = [command for plan in plans for command in plan.commands()]
    answers = iter(await client.together(commands) if commands else [])
    entries = [plan.entry(answers) for plan in plans]
    return [entry for entry in entries if entry is not None]


@dataclass(frozen=True)
class _Plan:
    """What is read of one record: `keys` with their types, and whether and where it is in `ranks` and `sets`."""

    keys: Sequence[tuple[str, Type]]
    ranks: Sequence[Where]
    sets: Sequence[Where]
    unkept_fields: tuple[str, ...]

    def commands(self) -> Iterator[tuple[Argument, ...]]:
        for key, type_ in self.keys:
            yield _reading(key, type_)
            yield ("PEXPIRETIME", key)
        for key, member in self.ranks:
            yield ("ZSCORE", key, member)
        for key, member in self.sets:
            yield ("SISMEMBER", key, member)

    def entry(self, answers: Iterator[Any]) -> Entry | None:
        """Take the answers to the commands; None when the record is gone."""
        values = []
        for key, type_ in self.keys:
            raw, expires = next(answers), next(answers)
            values.append(_value(key, type_, raw, expires if expires > 0 else None, self.unkept_fields))
        scores = [(key, member, next(answers)) for key, member in self.ranks]
        ranked = [(key, member, float(score)) for key, member, score in scores if score is not None]
        places = [Place(key=key, member=member, score=score) for key, member, score in ranked]
        places += [Place(key=key, member=member) for key, member in self.sets if next(answers)]
        if not values[0].rows:
            return None
        return Entry(key=values[0].key, values=[value for value in values if value.rows], places=places)


def _plan(kind: Kind, value: Value, stories: bool) -> _Plan:
    name, record = value.key.split(":", 2)[-1], decode_record(value)
    companions = [(key, type_) for key, type_ in kind.companions(name, record) if stories or type_ != "stream"]
    return _Plan(
        keys=[(value.key, value.type), *companions],
        ranks=kind.ranks(name, record),
        sets=kind.memberships(name, record),
        unkept_fields=kind.unkept_fields,
    )


def decode_record(value: Value) -> dict[str, Any]:
    """Return a record's fields: of the JSON in a string, or those of a hash with those of the JSON in its `record`."""
    beside: dict[str, Any] = {}
    if value.type == "string":
        text = value.rows[0][0]
    elif value.type == "hash":
        beside = {str(field): text for field, text in value.rows}
        if "record" not in beside:
            return beside
        text = beside["record"]
    else:
        return {}
    try:
        found = msgspec.json.decode(text) if isinstance(text, str) else None
    except msgspec.DecodeError:
        return {}
    return beside | found if isinstance(found, dict) else {}


def _reading(key: str, type_: str) -> tuple[Argument, ...]:
    commands: dict[str, tuple[Argument, ...]] = {
        "string": ("GET", key),
        "hash": ("HGETALL", key),
        "list": ("LRANGE", key, 0, -1),
        "set": ("SMEMBERS", key),
        "zset": ("ZRANGE", key, 0, -1, "WITHSCORES"),
        "stream": ("XRANGE", key, "-", "+"),
        "none": ("EXISTS", key),
    }
    return commands[type_]


def _value(key: str, type_: Type, raw: Any, expires_at_ms: int | None, unkept_fields: Sequence[str]) -> Value:
    """Put what redis-py answers into rows; none for a key that is not there."""
    rows: list[list[Any]] = []
    if type_ == "string":
        rows = [] if raw is None else [[raw]]
    elif type_ == "hash":
        rows = [[field, text] for field, text in sorted(raw.items()) if field.decode() not in unkept_fields]
    elif type_ == "zset":
        rows = [[member, str(float(score))] for member, score in zip(raw[::2], raw[1::2], strict=True)]
    elif type_ == "stream":
        rows = [[entry, *(part for pair in fields.items() for part in pair)] for entry, fields in raw]
    else:
        rows = [[member] for member in (sorted(raw) if type_ == "set" else raw)]
    cells = [[_cell(text) for text in row] for row in rows]
    return Value(key=key, type=type_, rows=cells, expires_at_ms=expires_at_ms)


def _cell(text: Text) -> Cell:
    if isinstance(text, str):
        return text
    try:
        return text.decode()
    except UnicodeDecodeError:
        return Raw(text)


async def put_back(client: Client, entry: Entry) -> bool:
    """Write a record with everything that belongs to it, unless it is there; False then. Raises StoreUnavailable.

    Of counters the larger value holds.
    """
    if entry.key in COUNTERS:
        await raise_counter(client, entry.key, int(str(entry.values[0].rows[0][0])))
        return True
    if await client.call("EXISTS", entry.key):
        return False
    await client.together([*_writing(entry)])
    return True


async def raise_counter(client: Client, key: str, value: int) -> None:
    """Have a counter stand at `value` at least."""
    if int(await client.call("GET", key) or 0) < value:
        await client.call("SET", key, value)


def _writing(entry: Entry) -> Iterator[tuple[Argument, ...]]:
    for value in entry.values:
        yield ("DEL", value.key)
        for start in range(0, len(value.rows), _PIECE):
            yield from _rows_writing(value, value.rows[start : start + _PIECE])
        if value.expires_at_ms is not None:
            yield ("PEXPIREAT", value.key, value.expires_at_ms)
    for place in entry.places:
        if place.score is None:
            yield ("SADD", place.key, place.member)
        else:
            yield ("ZADD", place.key, place.score, place.member)
    if entry.family == "adapter":
        yield from _sharing(entry)


def _rows_writing(value: Value, rows: Sequence[Sequence[Cell]]) -> Iterator[tuple[Argument, ...]]:
    if value.type == "stream":
        for id_, *fields in rows:
            yield ("XADD", value.key, _text(id_), *map(_text, fields))
        return
    command = {"string": "SET", "hash": "HSET", "list": "RPUSH", "set": "SADD", "zset": "ZADD"}[value.type]
    ordered = [list(reversed(row)) if value.type == "zset" else row for row in rows]
    yield (command, value.key, *(_text(cell) for row in ordered for cell in row))


def _sharing(entry: Entry) -> Iterator[tuple[Argument, ...]]:
    """List a model with the projects that may use it."""
    name = entry.key.split(":", 2)[-1]
    for value in entry.values:
        if value.key == keys.permissions(name):
            for row in value.rows:
                yield ("SADD", keys.shared_models(str(row[0])), name)


def _text(cell: Cell) -> Argument:
    return cell if isinstance(cell, str) else cell.base64
