"""Having a model in an inference server's memory before requests are sent to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from shared.errors import AdapterRejected, Conflict
from shared.placement import may_answer, owners
from shared.records import AdapterRecord, BaseRecord, ReplicaRecord, Residency
from shared.store.presence import Presence
from shared.store.registry import Registry

WAIT_S = 10.0
_POLL_S = 0.05
_ASK_AGAIN_S = 1.0
_OLD_NEWS_S = 2.0
"""For so long after it was asked, a server may still have to look again at what failed earlier."""


class Warming:
    """Asks the servers of a base, and hears from them through the registry."""

    def __init__(self, registry: Registry, presence: Presence, *, wait_s: float = WAIT_S) -> None:
        self._registry = registry
        self._presence = presence
        self._wait_s = wait_s

    async def warm(self, model: BaseRecord | AdapterRecord, *, param: str, wait: bool) -> bool:
        """Return whether a server that answers now has the model at hand; wait for that if there is one and `wait`.

        Without a server for its base there is nothing to wait for. Raises AdapterRejected when its owners refuse it,
        and Conflict with code `model_not_warm` when it takes too long.
        """
        servers = await self._servers(model)
        if isinstance(model, BaseRecord) or not servers:
            return bool(servers)
        if await self._is_warm(model, servers):
            return True
        if wait:
            return await self._wait(model, param)
        await self._registry.ask_to_warm(model)
        return False

    async def _wait(self, model: AdapterRecord, param: str) -> bool:
        asked_at, started, asked = time.time(), time.monotonic(), 0
        while (waited_s := time.monotonic() - started) < self._wait_s:
            # Again and again: a server whose places were all taken does not come back to it by itself.
            if waited_s >= asked * _ASK_AGAIN_S:
                await self._registry.ask_to_warm(model)
                asked += 1
            await asyncio.sleep(_POLL_S)
            servers = await self._servers(model)
            if not servers or await self._is_warm(model, servers, param=param, asked_at=asked_at):
                return bool(servers)
        raise Conflict(
            f"No inference server had the model '{model.name}' in memory within {self._wait_s:.0f} s, so nothing was "
            "changed; try again, or send 'wait_warm': false.",
            code="model_not_warm",
            param=param,
        )

    async def _servers(self, model: BaseRecord | AdapterRecord) -> list[ReplicaRecord]:
        """Return the servers that take requests for the model."""
        base, name = (model.id, model.id) if isinstance(model, BaseRecord) else (model.served_on, model.name)
        alive = await self._presence.replicas()
        able = [one for one in alive if may_answer(one, base=base, model=name)]
        return [one for one in able if one.state == "ready" and one.url]

    async def _is_warm(
        self,
        model: AdapterRecord,
        servers: Sequence[ReplicaRecord],
        *,
        param: str = "model",
        asked_at: float | None = None,
    ) -> bool:
        """Raises AdapterRejected, once they were asked, when every server that should load the model says why not."""
        said = await self._registry.residency(model.name)
        if any(one.merged or (one.id in said and said[one.id].state == "warm") for one in servers):
            return True
        asked = [said.get(one.id) for one in owners(servers, model.name)]
        refusals = [one for one in asked if one is not None and one.is_refusal]
        if len(refusals) == len(asked) and asked_at is not None and _is_news(refusals, asked_at):
            raise AdapterRejected(
                f"The model '{model.name}' cannot be served: {refusals[0].reason}", code="adapter_failed", param=param
            )
        return False


def _is_news(refusals: list[Residency], asked_at: float) -> bool:
    return time.time() > asked_at + _OLD_NEWS_S or all(one.at >= asked_at for one in refusals)
