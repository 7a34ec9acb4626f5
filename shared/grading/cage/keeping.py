"""A few cages kept open, so that the items of one source are graded without building one for each."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from shared.grading.cage.running import Limits, OpenCage, Outcome


@dataclass
class _Kept:
    cage: OpenCage
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    items: int = 0
    """Being graded, or waiting to be."""


class Cages:
    """What `Means.cage` asks for: `at_once` sources grade an item at a time each, and `most` cages stay open.

    So at most `at_once` times the memory of the limits is in use.
    """

    def __init__(self, limits: Limits | None = None, *, at_once: int = 4, most: int = 8) -> None:
        self._limits = limits or Limits()
        self._most = most
        self._places = asyncio.Semaphore(at_once)
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        """By source, those last that were graded last."""

    async def grade(self, source: str, sample: dict[str, Any], item: dict[str, Any]) -> Outcome:
        """Return what `grade(sample, item)` of a source gives."""
        if source not in self._kept:
            self._kept[source] = _Kept(OpenCage(source, self._limits))
        self._kept.move_to_end(source)
        kept = self._kept[source]
        kept.items += 1
        try:
            async with kept.turn, self._places:  # only an item whose turn it is takes one of the places for all
                return await kept.cage.grade(sample, item)
        finally:
            kept.items -= 1
            await self._close_idle()

    async def close(self) -> None:
        """End all cages."""
        kept = list(self._kept.values())
        self._kept.clear()
        await asyncio.gather(*(one.cage.close() for one in kept))

    async def _close_idle(self) -> None:
        idle = [source for source, kept in self._kept.items() if not kept.items]
        surplus = idle[: max(0, len(self._kept) - self._most)]
        closing = [self._kept.pop(source) for source in surplus]
        await asyncio.gather(*(kept.cage.close() for kept in closing))
