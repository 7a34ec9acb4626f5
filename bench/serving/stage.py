"""What the scenes share: the base, adapters, and servers that are started when they are first needed.

Servers stay up side by side, and only one is asked at a time; those that wait use no processor time to speak of, which
is measured and printed.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from bench.serving.adapters import Shelf
from bench.serving.asking import ask
from bench.serving.server import Server
from bench.serving.sides.ours import Ours
from bench.serving.sides.stock import PlainStock, Stock

T = TypeVar("T")
_IDLE_S = 3.0


class Stage:
    """`rounds` is how often each figure is measured; with `quick` everything is as short as it can be."""

    def __init__(self, base: Path, folder: Path, *, rounds: int, quick: bool) -> None:
        self.base = base
        self.folder = folder
        self.rounds = rounds
        self.quick = quick
        self.home = folder / "ours"
        self.home.mkdir()
        self._ours = Ours(self.home, base)
        self._stock = Stock(folder, base, self._ours.settings)
        self._plain = PlainStock(folder, base, self._ours.settings)
        self._servers: tuple[Server, ...] = (self._plain, self._stock, self._ours)
        self.shelf = Shelf(base, self._ours.base_id, self.home)

    def count(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    async def ours(self) -> Ours:
        await self._up(self._ours)
        return self._ours

    async def sides(self) -> tuple[Server, Server]:
        """Return ours and stock, both up and idle."""
        return await self.ours(), await self._up(self._stock)

    async def all_sides(self) -> tuple[Server, Server, Server]:
        """Return ours, stock, and stock without LoRA."""
        return (*await self.sides(), await self._up(self._plain))

    def turns(self, sides: Sequence[T]) -> list[tuple[int, T]]:
        """List (round, side) of every turn; each round begins with the next side."""
        count = len(sides)
        return [(number, sides[(number + place) % count]) for number in range(self.rounds) for place in range(count)]

    async def publish(self, sides: Sequence[Server], count: int) -> list[str]:
        """Publish the first `count` adapters on each side, and return their names once each has answered."""
        names = [f"ft:bench:{number}" for number in range(count)]
        for side in sides:
            async with side.client() as client:
                for name, adapter in zip(names, self.shelf.take(count), strict=True):
                    if name not in side.published:
                        await side.publish(name, adapter)
                        side.published.add(name)
                    await ask(client, name, 1)
        return names

    async def _up(self, server: Server) -> Server:
        if not server.alive:
            server.stop()
            server.published.clear()
            seconds = await server.start()
            idle = await _idle_share(server)
            print(f"  {server.name} is up after {seconds:.1f} s; idle it uses {idle:.1%} of a core", flush=True)
        return server

    def clear(self) -> None:
        """End the servers, for a scene with others; they start again when they are needed."""
        for server in self._servers:
            server.stop()

    async def close(self) -> None:
        for server in self._servers:
            await server.close()
        shutil.rmtree(self.home, ignore_errors=True)


async def _idle_share(server: Server) -> float:
    await asyncio.sleep(1)
    before = server.cpu_s()
    await asyncio.sleep(_IDLE_S)
    return (server.cpu_s() - before) / _IDLE_S
