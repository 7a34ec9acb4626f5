"""The agent's calls into the engine, typed. They are answered between two steps, so each may take as long as a step."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from services.inference.adapters.leases import Lease


class Loaded(Struct, frozen=True, kw_only=True):
    """Outcome of a load; `error` is empty when it worked, `retry` tells that only the room was missing."""

    error: str
    retry: bool
    load_ms: float
    resident: list[int]


class EngineStatus(Struct, frozen=True, kw_only=True):
    """What the engine holds. `lost`: adapters whose requests ran without weights, with the reason."""

    resident: list[int]
    lost: list[tuple[int, str]]
    wrapper: str


class EngineClient(Protocol):
    """The part of vLLM's AsyncLLM that is used here."""

    async def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        """Call a method of every worker and return their results, in order of rank."""


class EngineLink:
    """Talks to every worker of one engine; an adapter counts as resident only when every rank holds it."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client

    async def load(self, lease: Lease, evict: list[int]) -> Loaded:
        """Load a lease's adapter after dropping `evict`. Raises what the engine raises when it is dead."""
        arguments = (lease.engine_name, lease.int_id, lease.path, evict)
        answers = [msgspec.convert(a, Loaded) for a in await self._call("selftune_load", arguments)]
        failed = next((answer for answer in answers if answer.error), None)
        if failed is not None and len(answers) > 1:
            await self.drop([lease.int_id])
        return failed or answers[0]

    async def install_probe(self, int_id: int) -> None:
        """Load a random adapter for the self-test."""
        await self._call("selftune_install_probe", (int_id,))

    async def drop(self, int_ids: list[int]) -> None:
        await self._call("selftune_drop", (int_ids,))

    async def status(self, timeout_s: float) -> EngineStatus:
        """Ask every worker; raises TimeoutError when the engine's loop does not turn."""
        async with asyncio.timeout(timeout_s):
            answers = await self._call("selftune_status", ())
        return msgspec.convert(answers[0], EngineStatus)

    async def _call(self, method: str, arguments: tuple[Any, ...]) -> list[Any]:
        return list(await self._client.collective_rpc(method, None, arguments))
