"""Which models should exist: bases and adapters. Replicas converge to it and report what they hold."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from shared import keys
from shared.alias_records import AliasRecord
from shared.errors import Conflict, LeaseLost, NotFound, SelftuneError
from shared.ids import is_policy
from shared.model_records import STORED, Access, ModelSettingsRecord, read_keys, read_settings
from shared.records import AdapterRecord, BaseRecord, Residency
from shared.store.client import Client
from shared.store.leases import owners_only
from shared.store.storage import Storage

_encode = msgspec.json.Encoder().encode
_decode_adapter = msgspec.json.Decoder(AdapterRecord).decode
_decode_base = msgspec.json.Decoder(BaseRecord).decode
_decode_alias = msgspec.json.Decoder(AliasRecord).decode
_decode_residency = msgspec.json.Decoder(Residency).decode

_RESIDENCY_TTL_S = 86_400


class AdapterChange(Struct, frozen=True, kw_only=True):
    """One entry of the change stream; the registry, not the entry, says what is true now."""

    name: str
    base: str
    action: Literal["published", "retired", "wanted"]
    """`wanted`: bring it into memory, or learn anew whether it is pinned."""


_decode_change = msgspec.json.Decoder(AdapterChange).decode


class CursorLost(SelftuneError):
    """The change stream was trimmed past the reader's place: take a snapshot and go on from there."""


class Known(Struct, frozen=True):
    """A model that was looked up, and what its owner has set for it; None where nothing was set."""

    model: BaseRecord | AdapterRecord
    settings: ModelSettingsRecord | None = None


class Found(Struct, frozen=True, kw_only=True):
    """What a name may mean to a key."""

    own: Known | None
    """The model of that name."""
    alias: AliasRecord | None = None
    named: dict[str, Known] = {}
    """Those that the alias names, as far as the key may use them."""
    hidden: frozenset[str] = frozenset()
    """Those that the project may use, but not the key."""


def unknown_model(name: str) -> NotFound:
    """Form the error that OpenAI gives for a model that is not there."""
    return NotFound(
        f"The model '{name}' does not exist or you do not have access to it.", code="model_not_found", param="model"
    )


class Registry:
    """Bases and adapters in Redis."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._storage = Storage(client, project_bytes=None)

    async def put_base(self, base: BaseRecord) -> None:
        await self._client.call("HSET", keys.BASES, base.id, _encode(base))

    async def bases(self) -> Sequence[BaseRecord]:
        """List the operator's base models by id; those that jobs have made are fine-tuned models to clients."""
        found = [_decode_base(raw) for raw in await self._client.call("HVALS", keys.BASES)]
        return sorted((base for base in found if not base.origin), key=lambda base: base.id)

    async def base(self, base_id: str) -> BaseRecord | None:
        raw = await self._client.call("HGET", keys.BASES, base_id)
        return None if raw is None else _decode_base(raw)

    async def publish(self, adapter: AdapterRecord, *, fence: str = "") -> AdapterRecord:
        """Declare that an adapter should exist, and return it with its number.

        Publishing the same bytes again (to list them, say) keeps the number. `fence` is the token of the lease on the
        job that made it. Raises LeaseLost, or Conflict when the name belongs to other bytes.
        """
        if adapter.size_bytes:  # the project's bytes must have been added up before more are
            await self._storage.used_bytes(adapter.project)
        head, _, tail = _encode(replace(adapter, int_id=0)).partition(b'"int_id":0')
        number = await self._client.script(
            "publish_adapter",
            [
                keys.adapter(adapter.name),
                keys.adapters(adapter.base),
                keys.ADAPTER_CHANGES,
                keys.ADAPTER_NEXT_ID,
                keys.models(adapter.project),
                keys.job(adapter.job_id),
                keys.project_bytes(adapter.project),
            ],
            [
                adapter.name,
                adapter.sha256,
                head + b'"int_id":',
                tail,
                _encode(AdapterChange(name=adapter.name, base=adapter.served_on, action="published")),
                int(adapter.listed),
                fence,
                adapter.size_bytes,
            ],
        )
        if number == -2:
            raise LeaseLost(f"{adapter.job_id} is owned by another worker now")
        if not number:
            raise Conflict(f"The model name '{adapter.name}' belongs to another adapter.")
        return replace(adapter, int_id=int(number))

    async def retire(self, name: str, *, fence: str = "") -> bool:
        """Declare that an adapter should not exist any more; False if it did not. It stops answering at once.

        `fence` is the token of the lease on the job that made it. Raises LeaseLost.
        """
        adapter = await self.get(name)
        if adapter is None:
            return False
        listed, kept = keys.models(adapter.project), keys.project_bytes(adapter.project)
        if adapter.size_bytes:
            job, size = keys.job(adapter.job_id), adapter.size_bytes
            if await self._client.script("unlist_model", [listed, kept, job], [name, size, fence]) == -2:
                raise LeaseLost(f"{adapter.job_id} is owned by another worker now")
        noted: tuple[str | int, ...] = ("ZADD", keys.RETIRED_ADAPTERS, int(time.time()), adapter.sha256)
        if adapter.whole:
            noted = ("HDEL", keys.BASES, name)
        sharers = [member.decode() for member in await self._client.call("HKEYS", keys.permissions(name))]
        removed, *_ = await owners_only(
            self._client,
            adapter.job_id,
            fence,
            [
                ("DEL", keys.adapter(name)),
                ("SREM", keys.adapters(adapter.base), name),
                ("SREM", listed, name),
                ("DEL", keys.permissions(name)),
                ("DEL", keys.model_settings(name)),
                ("SREM", keys.PINNED_ADAPTERS, name),
                ("ZREM", keys.adapter_uses(adapter.base), name),
                ("DEL", keys.residency(name)),
                noted,
                *(("SREM", keys.shared_models(project), name) for project in sharers),
                _change(adapter, "retired"),
            ],
        )
        return bool(removed)

    async def retired(self) -> dict[str, float]:
        """Return the digests of adapters that were retired, with the Unix time; other models may still have them."""
        found = await self._client.call("ZRANGE", keys.RETIRED_ADAPTERS, 0, -1, "WITHSCORES")
        return {digest.decode(): float(at) for digest, at in zip(found[::2], found[1::2], strict=True)}

    async def forget_retired(self, digests: Collection[str]) -> None:
        """Say that the files of retired adapters are gone."""
        if digests:
            await self._client.call("ZREM", keys.RETIRED_ADAPTERS, *digests)

    async def digests(self) -> set[str]:
        """Return the digest of every adapter that should exist, of any base, listed or not."""
        cursor, found = 0, set[str]()
        while True:
            cursor, places = await self._client.call("SCAN", cursor, "MATCH", keys.adapter("*"), "COUNT", 1000)
            raws = await self._client.call("MGET", *places) if places else []
            found |= {_decode_adapter(raw).sha256 for raw in raws if raw is not None}
            if not cursor:
                return found

    async def policies(self, job_id: str = "") -> list[AdapterRecord]:
        """List the models of steps of a reinforcement job, or of all jobs, that should exist."""
        bases = [base.decode() for base in await self._client.call("HKEYS", keys.BASES)]
        found = await self._client.together([("SMEMBERS", keys.adapters(base)) for base in bases]) if bases else []
        names = [member.decode() for members in found for member in members]
        policies = await self._many([name for name in names if is_policy(name)])
        return [policy for policy in policies if job_id in ("", policy.job_id)]

    async def ask_to_warm(self, adapter: AdapterRecord) -> None:
        """Ask the replicas of its base to bring an adapter into memory; `residency` tells when one has."""
        await self._client.call(*_change(adapter, "wanted"))

    async def pin(self, adapter: AdapterRecord, *, pinned: bool, limit: int | None = None) -> bool:
        """Have the replicas keep an adapter in memory, also while nobody uses it, or no longer; False if they do so.

        Raises Conflict when `limit` adapters of its base are pinned already, NotFound when it is gone.
        """
        outcome = await self._client.script(
            "pin_adapter",
            [keys.PINNED_ADAPTERS, keys.adapter(adapter.name), keys.adapters(adapter.base), keys.ADAPTER_CHANGES],
            [
                adapter.name,
                int(pinned),
                -1 if limit is None else limit,
                _encode(AdapterChange(name=adapter.name, base=adapter.served_on, action="wanted")),
            ],
        )
        if outcome == -1:
            raise Conflict(
                f"The limit of {limit} pinned models on '{adapter.base}' is reached; unpin one first.",
                code="too_many_pinned",
                param="pinned",
            )
        if outcome == -2:
            raise unknown_model(adapter.name)
        return bool(outcome)

    async def pinned(self) -> set[str]:
        """Return the names of all pinned adapters, of every base."""
        return {member.decode() for member in await self._client.call("SMEMBERS", keys.PINNED_ADAPTERS)}

    async def get(self, name: str) -> AdapterRecord | None:
        raw = await self._client.call("GET", keys.adapter(name))
        return None if raw is None else _decode_adapter(raw)

    async def usable(self, name: str, project: str) -> AdapterRecord | None:
        """Return a fine-tuned model that a project may use: a listed one, its own or shared with it."""
        raw, shared = await self._client.together(
            [("GET", keys.adapter(name)), ("SISMEMBER", keys.shared_models(project), name)]
        )
        return _if_usable(raw, project, shared=bool(shared))

    async def find(self, name: str, access: Access, *, alias: bool = False) -> Found:
        """Return what a name means to a key, and with `alias` also the project's alias of it; one round trip.

        Of a model's name that is the base, else the fine-tuned model if it may be used: a listed one, of the project or
        shared with it, that is for the key. A base that a job has made is given
        to those alone who may use the fine-tuned model of its name.
        """
        places = [
            keys.BASES,
            keys.shared_models(access.project),
            *([keys.alias(access.project, name)] if alias else []),
        ]
        record, *looks = await self._client.script(
            "find_model", places, [name, keys.adapter(""), keys.model_settings(""), *STORED]
        )
        own, *named = [_if_found(look, access) for look in looks]
        if record is None:
            return Found(own=own)
        names = [look[0].decode() for look in looks[1:]]
        known = {name: model for name, model in zip(names, named, strict=True) if model is not None}
        anyone = replace(access, is_admin=True)
        missed = [(name, look) for name, look in zip(names, looks[1:], strict=True) if name not in known]
        hidden = frozenset(name for name, look in missed if _if_found(look, anyone) is not None)
        return Found(own=own, alias=_decode_alias(record), named=known, hidden=hidden)

    async def owned(self, name: str, access: Access) -> AdapterRecord:
        """Return a listed fine-tuned model of a project that is for the key. Raises NotFound, for shared ones too."""
        raw, allowed = await self._client.together(
            [("GET", keys.adapter(name)), ("HGET", keys.model_settings(name), "allowed_keys")]
        )
        adapter = _if_usable(raw, access.project, shared=False)
        if adapter is None or not access.is_among(read_keys(allowed)):
            raise unknown_model(name)
        return adapter

    async def visible(self, access: Access) -> Sequence[AdapterRecord]:
        """List the fine-tuned models that a key may use, newest first."""
        models = await self.listed(access.project)
        fields = [("HGET", keys.model_settings(model.name), "allowed_keys") for model in models]
        allowed = await self._client.together(fields) if fields else []
        return [model for model, of_it in zip(models, allowed, strict=True) if access.is_among(read_keys(of_it))]

    async def listed(self, project: str) -> Sequence[AdapterRecord]:
        """List the fine-tuned models of a project and those shared with it, whatever the key, newest first."""
        found = await self._client.call("SUNION", keys.models(project), keys.shared_models(project))
        names = [member.decode() for member in found]
        return sorted(await self._many(names), key=lambda adapter: (-adapter.created_at, adapter.name))

    async def snapshot(self, base: str) -> tuple[str, Sequence[AdapterRecord]]:
        """Return all adapters that a base's servers should have, and the place in the change stream to go on from."""
        last = await self._client.call("XREVRANGE", keys.ADAPTER_CHANGES, "+", "-", "COUNT", 1)
        cursor = last[0][0].decode() if last else "0-0"
        return cursor, [adapter for adapter in await self.on_base(base) if adapter.served_on == base]

    async def on_base(self, base: str) -> Sequence[AdapterRecord]:
        """Return all adapters on a base, served or not. A base that a job has made is no adapter on itself."""
        names = [member.decode() for member in await self._client.call("SMEMBERS", keys.adapters(base))]
        return [adapter for adapter in await self._many(names) if not adapter.whole]

    async def changes(self, cursor: str, *, block_ms: int) -> tuple[str, Sequence[AdapterChange]]:
        """Wait up to `block_ms` for changes behind `cursor`; returns the new cursor and them.

        Raises CursorLost when changes behind `cursor` were dropped, or Redis came back without them.
        """
        await self._check_cursor(cursor)
        found = await self._client.call(
            "XREAD", "COUNT", 100, "BLOCK", block_ms, "STREAMS", keys.ADAPTER_CHANGES, cursor
        )
        entries = found[0][1] if found else []
        changes = [_decode_change(fields[b"change"]) for _, fields in entries]
        return (entries[-1][0].decode() if entries else cursor), changes

    async def _check_cursor(self, cursor: str) -> None:
        if cursor == "0-0":
            return
        if not await self._client.call("XRANGE", keys.ADAPTER_CHANGES, cursor, cursor, "COUNT", 1):
            raise CursorLost("the change stream no longer holds this place")

    async def acknowledge(self, replica_id: str, standing: Mapping[str, Residency]) -> None:
        """Report how adapters stand on a replica, by name."""
        now = time.time()
        commands: list[tuple[str | int | bytes, ...]] = []
        for name, residency in standing.items():
            key = keys.residency(name)
            commands.append(("HSET", key, replica_id, _encode(replace(residency, at=now))))
            commands.append(("EXPIRE", key, _RESIDENCY_TTL_S))
        await self._client.together(commands)

    async def residency(self, name: str) -> dict[str, Residency]:
        """Tell, by replica id, how an adapter stands; entries of dead replicas may linger for a day."""
        found = await self._client.call("HGETALL", keys.residency(name))
        told = {replica.decode(): _decode_residency(raw) for replica, raw in found.items()}
        old = [replica for replica, residency in told.items() if residency.at < time.time() - _RESIDENCY_TTL_S]
        if old:
            await self._client.call("HDEL", keys.residency(name), *old)
        return {replica: residency for replica, residency in told.items() if replica not in old}

    async def _many(self, names: Sequence[str]) -> list[AdapterRecord]:
        if not names:
            return []
        raws = await self._client.call("MGET", *map(keys.adapter, names))
        return [_decode_adapter(raw) for raw in raws if raw is not None]


def _change(adapter: AdapterRecord, action: Literal["retired", "wanted"]) -> tuple[str | int | bytes, ...]:
    """Form the command that tells the replicas."""
    change = _encode(AdapterChange(name=adapter.name, base=adapter.served_on, action=action))
    return ("XADD", keys.ADAPTER_CHANGES, "MAXLEN", "~", 10000, "*", "change", change)


def _if_usable(raw: bytes | None, project: str, *, shared: bool) -> AdapterRecord | None:
    adapter = None if raw is None else _decode_adapter(raw)
    if adapter is None or not adapter.listed or not (shared or adapter.project == project):
        return None
    return adapter


def _if_found(look: Sequence[Any], access: Access) -> Known | None:
    """Read one line of what scripts/find_model.lua returns."""
    _, base, raw, shared, stored = look
    found = None if base is None else _decode_base(base)
    if found is not None and not found.origin:
        return Known(found)
    usable, settings = _if_usable(raw, access.project, shared=bool(shared)), read_settings(stored)
    if usable is None or (settings is not None and not access.is_among(settings.allowed_keys)):
        return None
    return Known(usable if found is None else replace(found, created_at=usable.created_at), settings)
