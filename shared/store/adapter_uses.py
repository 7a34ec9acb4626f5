"""How often adapters are used: what a replica that starts brings into memory first."""

from __future__ import annotations

import time
from collections.abc import Mapping

from shared import keys
from shared.store.client import Client

_FADE_S = 3600


class AdapterUses:
    """Uses by adapter and base, fading by a tenth an hour, so that last month's favourite makes room for today's."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def add(self, base: str, uses: Mapping[str, int]) -> None:
        """Count uses by adapter name."""
        pairs = [part for name, count in uses.items() for part in (name, count)]
        await self._client.script(
            "count_uses", [keys.adapter_uses(base), keys.adapters(base)], [int(time.time()), _FADE_S, *pairs]
        )

    async def most_used(self, base: str, limit: int) -> list[str]:
        """List the names of the adapters that are used most, at most `limit` of them."""
        found = await self._client.call("ZREVRANGE", keys.adapter_uses(base), 0, limit - 1)
        return [member.decode() for member in found if not member.startswith(b"\0")]
