"""Flows of one kind by project. Every change is compare-and-set.

A flow that has ended stays among the active ones until it is closed: until whoever worked on it has stopped what it had
begun, and has removed what nobody needs any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

import msgspec

from shared import keys
from shared.errors import LeaseLost, NotFound, RateLimited
from shared.flow_records import FlowRecord
from shared.flow_states import ENDED, check_flow_transition
from shared.store import index
from shared.store.client import Client
from shared.store.leases import LeaseStore

F = TypeVar("F", bound=FlowRecord)

_GONE, _REPLACED = -1, -2
_TOO_MANY = -5
_encode = msgspec.json.Encoder().encode


class FlowStore(Generic[F]):
    """The only writer of the flows of a kind. `fence` is the token of the flow's lease, see LeaseStore.

    `kind` stands in the keys and in messages: a word such as `distillation`. A project has `project_flows` of the kind
    that are not at their end at most.
    """

    def __init__(self, client: Client, kind: str, record: type[F], *, project_flows: int = 100) -> None:
        self._client = client
        self.kind = kind
        self._decode = msgspec.json.Decoder(record).decode
        self._project_flows = project_flows

    def leases(self, *, ttl_s: float) -> LeaseStore:
        """Return the leases on flows of this kind."""
        key, owned = partial(keys.flow_lease, self.kind), partial(keys.flow, self.kind)
        return LeaseStore(self._client, ttl_s=ttl_s, key=key, owned=owned)

    async def create(self, record: F) -> F:
        """Store a new flow, or return the one that has its id already. Raises RateLimited."""
        created = await self._client.script(
            "create_flow",
            [self._key(record.id), *self._lists(record.project), keys.SEQUENCE],
            [record.id, _encode(record), self._project_flows],
        )
        if created == _TOO_MANY:
            raise RateLimited(
                f"The project has {self._project_flows} of this kind ({self.kind}) that are not at their end, which is "
                "its limit; wait for one to end, or cancel one.",
                code=f"concurrent_{self.kind}s_exceeded",
            )
        return record if created else await self.get(record.id, project=record.project)

    async def get(self, flow_id: str, *, project: str | None = None) -> F:
        """Raises NotFound when it is unknown, or belongs to another project than the one given."""
        record, _ = await self._read(flow_id)
        if project not in (None, record.project):
            raise self._unknown(flow_id)
        return record

    async def list(
        self, project: str, *, after: str | None, limit: int, newest_first: bool = True
    ) -> tuple[Sequence[F], bool]:
        """Return a page by the order of creation, and whether there are more. Raises NotFound when `after` is none."""
        ids, more = await index.page(
            self._client, keys.flows(self.kind, project), after=after, limit=limit, newest_first=newest_first
        )
        return await self.read(ids), more

    async def active(self) -> Sequence[str]:
        """List ids of the flows that are not closed, oldest first."""
        return [one.decode() for one in await self._client.call("ZRANGE", keys.active_flows(self.kind), 0, -1)]

    async def is_active(self, flow_id: str) -> bool:
        """Tell whether a flow is not closed."""
        return await self._client.call("ZSCORE", keys.active_flows(self.kind), flow_id) is not None

    async def read(self, ids: Sequence[str]) -> Sequence[F]:
        """Return the flows of these ids in the same order, without those that are unknown."""
        raws = await self._client.together([("HGET", self._key(one), "record") for one in ids]) if ids else []
        return [self._decode(raw) for raw in raws if raw is not None]

    async def update(self, flow_id: str, change: Callable[[F], F], *, fence: str = "") -> F:
        """Apply `change` to the newest record, again whenever others write meanwhile.

        Raises NotFound, LeaseLost, or TransitionRefused when `change` asks for a state that is not allowed from here.
        """
        while True:
            current, version = await self._read(flow_id)
            changed = change(current)
            check_flow_transition(current.status, changed.status, called=self.kind)
            if changed == current:
                return current
            outcome = await self._client.script(
                "commit_flow",
                [self._key(flow_id), keys.active_project_flows(self.kind, current.project)],
                [version, _encode(changed), fence, flow_id, int(changed.status in ENDED)],
            )
            if outcome == 1:
                return changed
            if outcome == _GONE:
                raise self._unknown(flow_id)
            if outcome == _REPLACED:
                raise LeaseLost(f"{flow_id} is worked on by another process now")

    async def close(self, flow_id: str) -> None:
        """Take an ended flow off the active ones: nothing is left to be done for it."""
        await self._client.call("ZREM", keys.active_flows(self.kind), flow_id)

    async def remove(self, record: F) -> None:
        """Delete a flow; whoever works on it finds it gone."""
        listing, active, of_project = self._lists(record.project)
        await self._client.script(
            "delete_flow",
            [self._key(record.id), keys.flow_lease(self.kind, record.id), listing, active, of_project],
            [record.id, keys.place(listing, "")],
        )

    def _key(self, flow_id: str) -> str:
        return keys.flow(self.kind, flow_id)

    def _lists(self, project: str) -> tuple[str, str, str]:
        kind = self.kind
        return keys.flows(kind, project), keys.active_flows(kind), keys.active_project_flows(kind, project)

    async def _read(self, flow_id: str) -> tuple[F, int]:
        raw, version = await self._client.call("HMGET", self._key(flow_id), "record", "version")
        if raw is None:
            raise self._unknown(flow_id)
        return self._decode(raw), int(version)

    def _unknown(self, flow_id: str) -> NotFound:
        return NotFound(f"No {self.kind} found with id '{flow_id[:100]}'.", param=f"{self.kind}_id")
