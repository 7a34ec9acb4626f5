"""Whose turn it is: no more different adapters at a time in the engine than one of its steps can hold.

Without this the engine's scheduler decides, and passes over a request whose adapter finds no slot for as long as the
adapters in the slots get new requests. Here adapters that wait are served in the order in which they came; one that has
had its turn for a while lets them go first, its later requests wait behind them. An adapter is loaded when its turn has
come, so that a long tail of waiting ones displaces nobody.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from shared.errors import Unavailable


class Busy(Unavailable):
    """The engine answers for as many adapters as it can; the request may be repeated."""

    default_code = "capacity_exceeded"


@dataclass(slots=True)
class _Turn:
    since: float
    requests: int = 0


class Turns:
    """Turns by adapter number. All methods run on one event loop."""

    def __init__(self, places: int, *, turn_s: float, patience_s: float) -> None:
        """Let `places` adapters in; one may take new requests for `turn_s` while others wait, up to `patience_s`."""
        self._places = places
        self._turn_s = turn_s
        self._patience_s = patience_s
        self._inside: dict[int, _Turn] = {}
        self._waiting: dict[int, list[asyncio.Future[None]]] = {}

    @property
    def waiting(self) -> int:
        """How many requests wait for their adapter's turn."""
        return sum(map(len, self._waiting.values()))

    async def enter(self, int_id: int) -> None:
        """Wait for the adapter's turn; `leave` follows. Raises Busy when it does not come in time."""
        if self._may_enter(int_id):
            self._admit(int_id)
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(int_id, []).append(place)
        try:
            async with asyncio.timeout(self._patience_s):
                await place
        except BaseException as error:
            self._give_up(int_id, place)
            if isinstance(error, TimeoutError):
                raise Busy("The server answers for too many fine-tuned models at once; please try again.") from None
            raise

    def leave(self, int_id: int) -> None:
        """End one request's part of a turn; with its last one the turn goes to whoever waits."""
        turn = self._inside[int_id]
        turn.requests -= 1
        if not turn.requests:
            del self._inside[int_id]
        self._let_in()

    def _may_enter(self, int_id: int) -> bool:
        turn = self._inside.get(int_id)
        if turn is None:
            return not self._waiting and len(self._inside) < self._places
        return not self._waiting or time.monotonic() - turn.since < self._turn_s

    def _admit(self, int_id: int) -> None:
        self._inside.setdefault(int_id, _Turn(time.monotonic())).requests += 1

    def _let_in(self) -> None:
        for int_id in list(self._waiting):
            if int_id not in self._inside and len(self._inside) >= self._places:
                continue
            if int_id in self._inside and next(iter(self._waiting)) != int_id:
                continue  # it has had its turn, and others came before
            for place in self._waiting.pop(int_id):
                if not place.done():
                    self._admit(int_id)
                    place.set_result(None)

    def _give_up(self, int_id: int, place: asyncio.Future[None]) -> None:
        if place.done() and not place.cancelled():  # let in at the moment in which the request was given up
            self.leave(int_id)
        elif place in (places := self._waiting.get(int_id, [])):
            places.remove(place)
            if not places:
                del self._waiting[int_id]
                self._let_in()
