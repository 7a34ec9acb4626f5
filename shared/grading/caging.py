"""Where graders in Python run: in cages, on servers that have them turned on and can build one."""

from __future__ import annotations

import asyncio

from shared.grading.cage import Cages, why_not
from shared.grading.means import Cage


class Caging:
    """Cages where the setting `python_graders` is on; whether one can be built is found out at the first use."""

    def __init__(self, *, turned_on: bool) -> None:
        self._cages = Cages() if turned_on else None
        self._works = False

    @property
    def cage(self) -> Cage | None:
        return self._cages

    async def why_not(self) -> str:
        """Return in a sentence's words why no grader in Python can run here; empty when one can."""
        if self._cages is None:
            return "they are turned off on this server"
        if not self._works:
            reason = await asyncio.to_thread(why_not)
            self._works = not reason
            return reason
        return ""

    async def close(self) -> None:
        if self._cages is not None:
            await self._cages.close()
