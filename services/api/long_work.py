"""Which api process works on which long piece of work, a batch or a run of an eval: tasks beside the requests.

A piece belongs to the process that holds its lease. One that stops gives its pieces back; those of one that died are
free when their leases have run out. Projects take turns for the places: one without a place gets it from the project
that has the most, and a piece that only waits for a server gives its place up.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, TypeVar

import structlog

from services.api.draining import pause
from services.api.leftovers import Leftovers
from services.api.turns import Turns
from shared.errors import LeaseLost, NoReplica, StoreUnavailable, Unavailable
from shared.store.leases import LeaseStore

_log = structlog.get_logger()

_POLL_S = 0.5


class Piece(Protocol):
    @property
    def id(self) -> str: ...

    @property
    def project(self) -> str: ...


P = TypeVar("P", bound=Piece)


@dataclass(frozen=True)
class Place:
    """A task that works on a piece; `is_extra` beside the places that projects share."""

    task: asyncio.Task[None]
    project: str
    is_extra: bool

    @property
    def counts(self) -> bool:
        """Whether it is one of the places that projects share: neither extra nor interrupted."""
        return not self.is_extra and not self.task.cancelling()


class LongWork(ABC, Generic[P]):
    """Takes up what nobody works on until `drain` is set or it is closed."""

    one: ClassVar[str]
    """What a piece is called in the log."""
    one_id: ClassVar[str]
    """Under which name its id is in log lines."""
    several: ClassVar[str]
    at_once: ClassVar[int]
    """Pieces that one process works on at a time; they share its requests under way."""

    def __init__(self, leases: LeaseStore, leftovers: Leftovers, drain: asyncio.Event) -> None:
        self._leases = leases
        self._leftovers = leftovers
        self._drain = drain
        self._running: dict[str, Place] = {}
        self._suspects: set[str] = set()
        """Pieces that run although processes died over them."""
        self._turns = Turns()
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._loop = asyncio.create_task(self._run())
        self._loop.add_done_callback(self._report)

    async def close(self) -> None:
        """Put everything down and give it back; what has been answered is kept."""
        self._drain.set()
        tasks = [task for task in (self._loop, *(place.task for place in self._running.values())) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @abstractmethod
    async def _active(self) -> Sequence[str]:
        """Return the ids of all pieces that are not at their end."""

    @abstractmethod
    async def _begin(self, idle: Sequence[str]) -> None:
        """Take up some of the active pieces that this process does not work on."""

    @abstractmethod
    async def _is_away(self, record: P) -> bool | None:
        """Tell whether the model of a piece is away; None where that is not known before it is tried."""

    @abstractmethod
    async def _work(self, piece_id: str, token: str) -> None:
        """Bring a piece to its end while its lease, known by `token`, is held."""

    @abstractmethod
    async def _fail(self, piece_id: str, token: str) -> None:
        """End a piece that this server cannot work on, by a fault of its own, instead of trying for ever."""

    async def _survived(self, piece_id: str, token: str) -> None:
        """Note, where it matters, that this process has lived through the work on a piece."""

    def _is_suspect(self, record: P) -> bool:
        """Tell whether processes died over a piece, as far as is known."""
        return False

    def _may_begin(self, record: P) -> bool:
        """Tell whether a piece may run beside those that do. Suspects go one by one: others died along with one."""
        return not self._suspects or not self._is_suspect(record)

    async def _run(self) -> None:
        while not self._drain.is_set():
            try:
                await self._round()
            except StoreUnavailable:
                _log.warning(f"{self.several}.store_away")
            except Exception as error:  # noqa: BLE001 - the next round may find it mended
                _log.error(f"{self.several}.round_failed", exc_info=error)
            await pause(self._drain, _POLL_S)

    async def _round(self) -> None:
        active = await self._active()
        self._turns.keep_only(frozenset(active))
        self._suspects &= self._running.keys()
        await self._begin([one for one in active if one not in self._running])
        await self._leftovers.tidy(frozenset(active))

    async def _fill_places(self, due: Sequence[P]) -> None:
        """Fill the places in turn. A project without one gets it from the project that has the most."""
        for record in self._turns.order(due, self._places()):
            places = self._places()
            is_full = places.total() >= self.at_once
            if is_full and (places[record.project] or max(places.values()) < 2):
                return  # those after it have no better claim
            if not self._may_begin(record):
                continue
            if self._turns.has_rested(record.id) and await self._would_rest(record, is_full=is_full):
                continue
            if await self._take_up(record) and is_full:
                self._put_down_one_of(max(places, key=lambda project: places[project]))

    def _places(self) -> Counter[str]:
        return Counter(place.project for place in self._running.values() if place.counts)

    async def _would_rest(self, record: P, *, is_full: bool) -> bool:
        is_away = await self._is_away(record)
        if is_away is None:
            return is_full
        if is_away:
            self._turns.rest(record.id, time.monotonic())
        return is_away

    def _put_down_one_of(self, project: str) -> None:
        """Interrupt the piece of a project that was taken up last; it gives itself back, and waits for its turn."""
        piece_id, place = [(one, it) for one, it in self._running.items() if it.counts and it.project == project][-1]
        _log.info(f"{self.one}.interrupted", **{self.one_id: piece_id}, project=project)
        place.task.cancel()

    async def _take_up(self, record: P, *, is_extra: bool = False) -> bool:
        """Work on a piece from now on, unless somebody else does."""
        token = await self._leases.claim(record.id)
        if token is None:
            return False
        task = asyncio.create_task(self._hold(record.id, token))
        self._running[record.id] = Place(task, record.project, is_extra)
        self._suspects |= {record.id} if self._is_suspect(record) else set()
        task.add_done_callback(lambda _: self._running.pop(record.id, None))
        task.add_done_callback(self._report)
        if not is_extra:
            self._turns.served(record.project)
        return True

    async def _hold(self, piece_id: str, token: str) -> None:
        """Work on a piece. After a failure its lease is left to run out, so that it is not tried again at once."""
        structlog.contextvars.bind_contextvars(**{self.one_id: piece_id})  # of this task, and of those that it starts
        _log.info(f"{self.one}.taken_up")
        try:
            await self._work(piece_id, token)
        except LeaseLost:
            _log.warning(f"{self.one}.lease_lost")
        except NoReplica as error:
            _log.info(f"{self.one}.rests", reason=str(error))
            self._turns.rest(piece_id, time.monotonic())
            await self._give_back(piece_id, token)
        except (Unavailable, OSError) as error:
            _log.warning(f"{self.one}.put_down", reason=str(error))
            await self._survived(piece_id, token)
        except asyncio.CancelledError:
            await self._give_back(piece_id, token)
            raise
        except Exception as error:  # noqa: BLE001 - ends this piece, not the others
            _log.error(f"{self.one}.broken", exc_info=error)
            await self._fail(piece_id, token)
        else:
            await self._give_back(piece_id, token)

    async def _give_back(self, piece_id: str, token: str) -> None:
        await self._survived(piece_id, token)
        with suppress(StoreUnavailable):
            await self._leases.release(piece_id, token)

    def _report(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error(f"{self.several}.failed", exc_info=error)
