"""A few cages kept open, so that the items of one source are graded without building one for each."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

from shared.grading.cage.running import Limits, OpenCage, Outcome


class Cages:
    """What `Means.cage` asks for; at most `most` cages of sources that were graded last stay open."""

    def __init__(self, limits: Limits | None = None, *, most: int = 8) -> None:
        self._limits = limits or Limits()
        self._most = most
        self._open: OrderedDict[str, OpenCage] = OrderedDict()
        self._grading: dict[OpenCage, int] = {}

    async def grade(self, source: str, sample: dict[str, Any], item: dict[str, Any]) -> Outcome:
        """Return what `grade(sample, item)` of a source gives."""
        cage = self._open.setdefault(source, OpenCage(source, self._limits))
        self._open.move_to_end(source)
        self._grading[cage] = self._grading.get(cage, 0) + 1
        try:
            return await cage.grade(sample, item)
        finally:
            self._grading[cage] -= 1
            if not self._grading[cage]:
                del self._grading[cage]
            await self._close_idle()

    async def close(self) -> None:
        """End all cages."""
        cages = list(self._open.values())
        self._open.clear()
        await asyncio.gather(*(cage.close() for cage in cages))

    async def _close_idle(self) -> None:
        idle = [source for source, cage in self._open.items() if cage not in self._grading]
        surplus = idle[: max(0, len(self._open) - self._most)]
        cages = [self._open.pop(source) for source in surplus]
        await asyncio.gather(*(cage.close() for cage in cages))
