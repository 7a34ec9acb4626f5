"""Which adapters the engine holds and who uses them: plain bookkeeping, changed from the event loop only."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Lease:
    """The right of one request to use one version of an adapter until it is released."""

    name: str
    """The public name that the client asked for."""
    version: int
    int_id: int
    path: str
    task: asyncio.Task[object] | None = field(default=None)
    """The request's task."""
    lost: bool = False
    """Whether the engine answered without the adapter; the answer must not go out."""

    @property
    def engine_name(self) -> str:
        """The name inside the engine: two versions under one name would be taken for the same adapter."""
        return f"{self.name}@v{self.version}"

    def end(self) -> None:
        """Stop the request that holds this lease."""
        self.lost = True
        if self.task is not None:
            self.task.cancel()


class Residents:
    """Adapters in the engine's memory, by number, least recently used first, with the leases on each."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.pinned: set[int] = set()
        """Adapters that stay, once they are there, also while nobody uses them."""
        self._order: OrderedDict[int, None] = OrderedDict()
        self._leases: Counter[int] = Counter()
        self._held: set[Lease] = set()
        self._changed = asyncio.Event()

    def __contains__(self, int_id: int) -> bool:
        return int_id in self._order

    def __len__(self) -> int:
        return len(self._order)

    def ids(self) -> list[int]:
        return list(self._order)

    def end(self, int_id: int) -> None:
        """Stop every request that uses an adapter: its answer was made without the adapter's weights."""
        for lease in self._held:
            if lease.int_id == int_id:
                lease.end()

    def leased(self, int_id: int) -> bool:
        return self._leases[int_id] > 0

    def add(self, lease: Lease) -> None:
        """Count a lease on a resident adapter and mark it as used last."""
        self._held.add(lease)
        self._leases[lease.int_id] += 1
        self._order.move_to_end(lease.int_id)

    def release(self, lease: Lease) -> bool:
        """Give a lease back; releasing it twice counts once. False if it was given back before."""
        if lease not in self._held:
            return False
        self._held.remove(lease)
        self._leases[lease.int_id] -= 1
        if not self._leases[lease.int_id]:
            del self._leases[lease.int_id]
            self._wake()
        return True

    def has_room(self) -> bool:
        """Tell whether one more adapter fits, once those that nobody uses are gone."""
        return sum(map(self._stays, self._order)) < self.capacity

    def _stays(self, int_id: int) -> bool:
        return self.leased(int_id) or int_id in self.pinned

    def make_room(self) -> list[int] | None:
        """Choose and forget the adapters that must go before one more fits; None when all of them are in use."""
        surplus = len(self._order) + 1 - self.capacity
        idle = [int_id for int_id in self._order if not self._stays(int_id)]
        if surplus > len(idle):
            return None
        victims = idle[: max(0, surplus)]
        for int_id in victims:
            del self._order[int_id]
        return victims

    def replace(self, resident: Iterable[int]) -> None:
        """Take over what the engine says it holds, keeping the order of use known here."""
        truth = dict.fromkeys(resident)
        kept = [int_id for int_id in self._order if int_id in truth]
        fresh = [int_id for int_id in truth if int_id not in self._order]
        self._order = OrderedDict.fromkeys([*kept, *fresh])
        self._wake()

    def discard(self, int_id: int) -> None:
        self._order.pop(int_id, None)
        self._wake()

    def next_change(self) -> asyncio.Event:
        """Return the event of the next time that an adapter loses its last lease or the contents change.

        Take it before looking: a change between the look and the wait is then not missed.
        """
        return self._changed

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
