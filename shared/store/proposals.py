"""Retraining proposals of aliases. Every change is compare-and-set; one at a time is open."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from shared import keys
from shared.alias_records import AliasRecord
from shared.errors import NotFound
from shared.proposal_records import ProposalRecord
from shared.store.client import Argument, Client

MOST_PROPOSALS = 100
"""Of one alias; the oldest that are decided are forgotten."""

_decode = msgspec.json.Decoder(ProposalRecord).decode
_encode = msgspec.json.Encoder().encode


class ProposalStore:
    """Proposals by their alias's uid."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def create(self, alias: AliasRecord, record: ProposalRecord) -> bool:
        """Store a proposal; False where one is open or under way, or that id is there, or the alias is gone."""
        known = await self.all(alias.uid)
        if any(one.id == record.id or one.status in ("open", "approved") for one in known):
            return False
        arguments: list[Argument] = [alias.uid, record.id, _encode(record)]
        arguments += [one.id for one in known[MOST_PROPOSALS - 1 :]]
        places = [keys.alias(alias.project, alias.name), keys.alias_proposals(alias.uid)]
        return bool(await self._client.script("create_proposal", places, arguments))

    async def all(self, uid: str) -> Sequence[ProposalRecord]:
        """List an alias's proposals, newest first."""
        found = [_decode(raw) for raw in await self._client.call("HVALS", keys.alias_proposals(uid))]
        return sorted(found, key=lambda one: (one.created_at, one.window_id, one.id), reverse=True)

    async def get(self, uid: str, proposal_id: str) -> ProposalRecord:
        """Raises NotFound."""
        return (await self._read(uid, proposal_id))[0]

    async def update(
        self, uid: str, proposal_id: str, change: Callable[[ProposalRecord], ProposalRecord]
    ) -> ProposalRecord:
        """Apply `change` to the newest record, again whenever others write meanwhile. Raises NotFound."""
        while True:
            current, raw = await self._read(uid, proposal_id)
            changed = change(current)
            if changed == current:
                return current
            arguments: list[Argument] = [proposal_id, raw, _encode(changed)]
            if await self._client.script("swap_proposal", [keys.alias_proposals(uid)], arguments):
                return changed

    async def _read(self, uid: str, proposal_id: str) -> tuple[ProposalRecord, bytes]:
        raw = await self._client.call("HGET", keys.alias_proposals(uid), proposal_id)
        if raw is None:
            raise NotFound(f"No proposal found with id '{proposal_id[:100]}'.", param="proposal_id")
        return _decode(raw), raw
