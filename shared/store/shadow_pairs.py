"""What shadows answered beside what clients got: a bounded list for each alias, with a lifetime."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
from msgspec import Raw, Struct

from shared import keys
from shared.alias_records import AliasRecord
from shared.errors import NotFound
from shared.schemas.aliases import ShadowAnswer, ShadowPair
from shared.store.client import Client

_PLACE = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")


class StoredPair(Struct, frozen=True, kw_only=True):
    """A pair as it is stored; its place in the stream is its id."""

    created_at: int
    expires_at: int
    request_id: str
    endpoint: str
    request: Raw
    answer: ShadowAnswer
    shadow: ShadowAnswer

    def public(self, pair_id: str) -> ShadowPair:
        return ShadowPair(
            id=pair_id,
            created_at=self.created_at,
            expires_at=self.expires_at,
            request_id=self.request_id,
            endpoint=self.endpoint,
            request=msgspec.json.decode(self.request),
            answer=self.answer,
            shadow=self.shadow,
        )


_decode = msgspec.json.Decoder(StoredPair).decode
_encode = msgspec.json.Encoder().encode


class PairStore:
    """Pairs, newest first."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def keep(self, alias: AliasRecord, pair: StoredPair, *, most: int, keep_s: int) -> None:
        """Add a pair, unless the alias was deleted or has no shadow any more.

        The oldest beyond `most` go, and all of them `keep_s` seconds after the last.
        """
        oldest_ms = max((pair.created_at - keep_s) * 1000, 0)
        await self._client.script(
            "keep_pair",
            [keys.alias(alias.project, alias.name), keys.shadow_pairs(alias.uid)],
            [alias.uid, _encode(pair), most, oldest_ms, keep_s],
        )

    async def list(self, uid: str, *, after: str | None, limit: int, now: float) -> tuple[Sequence[ShadowPair], bool]:
        """Return a page of those that have not expired at `now` (Unix time), and whether there are more.

        Raises NotFound when `after` is no pair's id.
        """
        key, start = keys.shadow_pairs(uid), "+"
        if after is not None:
            if not _PLACE.fullmatch(after):
                raise NotFound(f"No such object to list after: {after[:100]}", param="after")
            start = f"({after}"
        found = await self._client.call("XREVRANGE", key, start, "-", "COUNT", limit + 1)
        pairs = [(place.decode(), _decode(fields[b"pair"])) for place, fields in found]
        kept = [pair.public(place) for place, pair in pairs if pair.expires_at > now]
        return kept[:limit], len(kept) > limit

    async def clear(self, uid: str) -> None:
        await self._client.call("DEL", keys.shadow_pairs(uid))
