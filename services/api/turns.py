"""Whose piece of long work is taken up next. Projects take turns: many pieces of one keep none of another's waiting."""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Protocol, TypeVar

_FIRST_REST_S = 2.0
_LONGEST_REST_S = 30.0


class Waiting(Protocol):
    """What waits for its project's turn: a batch, a run of an eval."""

    @property
    def project(self) -> str: ...


W = TypeVar("W", bound=Waiting)


class Turns:
    """Remembers who was served last, and which pieces rest because their models are away."""

    def __init__(self) -> None:
        self._turn = count(1)
        self._last: dict[str, int] = {}
        self._rests: dict[str, tuple[float, float]] = {}
        """By piece until when it rests, on the monotonic clock, and how long that rest is in seconds."""

    def order(self, waiting: Iterable[W], held: Mapping[str, int]) -> Sequence[W]:
        """Sort pieces by whose turn it is; `held` has how many places each project has already.

        The next is always of a project with the fewest places, of those the one that was served longest ago, and of a
        project's pieces the first in `waiting`.
        """
        queues: dict[str, deque[W]] = defaultdict(deque)
        for record in waiting:
            queues[record.project].append(record)
        heap = [(held.get(project, 0), self._last.get(project, 0), project) for project in queues]
        heapq.heapify(heap)
        ordered: list[W] = []
        while heap:
            places, last, project = heapq.heappop(heap)
            ordered.append(queues[project].popleft())
            if queues[project]:
                heapq.heappush(heap, (places + 1, last, project))
        return ordered

    def served(self, project: str) -> None:
        self._last[project] = next(self._turn)

    def rest(self, piece_id: str, now: float) -> None:
        """Let a piece rest from `now` on (monotonic), each time twice as long, up to half a minute."""
        _, length_s = self._rests.get(piece_id, (0.0, _FIRST_REST_S / 2))
        length_s = min(2 * length_s, _LONGEST_REST_S)
        self._rests[piece_id] = (now + length_s, length_s)

    def rests(self, piece_id: str, now: float) -> bool:
        return piece_id in self._rests and now < self._rests[piece_id][0]

    def has_rested(self, piece_id: str) -> bool:
        return piece_id in self._rests

    def keep_only(self, active: frozenset[str]) -> None:
        """Forget the rests of pieces that are no more."""
        for piece_id in self._rests.keys() - active:
            del self._rests[piece_id]
