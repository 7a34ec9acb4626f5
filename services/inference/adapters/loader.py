"""Brings adapters into the engine and out of it: checked first, one call at a time, truthful about what is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import structlog

from services.inference.adapters.leases import Lease, Residents
from services.inference.engine.link import EngineLink
from shared.adapters import verify_adapter
from shared.blobs.interface import Blobs
from shared.errors import AdapterRejected, SelftuneError
from shared.records import AdapterRecord, BaseRecord

log = structlog.get_logger()


class NoPlace(SelftuneError):
    """Every place in memory is taken by adapters that are being used, or pinned."""


class NotWanted(SelftuneError):
    """The adapter was retired before its load began."""


class Outcome(NamedTuple):
    """A load that worked: its time in the engine, and the numbers of the adapters that made room for it."""

    load_ms: float
    evicted: list[int]


class AdapterLoader:
    """The engine's side of the agent. Its methods run on one event loop; calls into the engine take turns."""

    def __init__(
        self,
        *,
        engine: EngineLink,
        base: BaseRecord,
        blobs: Blobs,
        capacity: int,
        max_rank: int,
    ) -> None:
        self.residents = Residents(capacity)
        self._engine = engine
        self._base = base
        self._blobs = blobs
        self._home = blobs.paths.home
        self._max_rank = max_rank
        self._turn = asyncio.Lock()

    def lease(self, record: AdapterRecord) -> Lease:
        """Form a lease; it counts once `residents.add` has it."""
        return Lease(record.name, record.version, record.int_id, str(self._home / record.folder))

    async def load(self, record: AdapterRecord, wanted: Callable[[], bool]) -> Outcome:
        """Check an adapter and bring it into the engine, in place of those that were used least recently.

        Raises AdapterRejected for one that must not be served, StorageUnavailable when its files are not here and the
        object store does not answer, NoPlace when every place is in use, NotWanted when
        `wanted` is false by the time its turn has come.
        """
        if not self.residents.has_room():
            raise NoPlace("every place for an adapter is in use")
        await stage(record, self._blobs)
        await asyncio.to_thread(verify_record, record, self._base, self._home, max_rank=self._max_rank)
        async with self._turn:
            if not wanted():
                raise NotWanted(record.name)
            victims = self.residents.make_room()
            if victims is None:
                raise NoPlace("every place for an adapter is in use")
            loaded = await self._engine.load(self.lease(record), victims)
            self.residents.replace(loaded.resident)
        if loaded.retry:
            raise NoPlace(loaded.error)
        if loaded.error:
            raise AdapterRejected(loaded.error)
        return Outcome(loaded.load_ms, victims)

    async def drop_idle(self, int_id: int) -> bool:
        """Free an adapter's memory and slot; False if somebody has begun to use it meanwhile, and it stays."""
        async with self._turn:
            if self.residents.leased(int_id):
                return False
            await self._drop([int_id])
            return True

    async def _drop(self, int_ids: list[int]) -> None:
        for int_id in int_ids:
            self.residents.discard(int_id)
        await self._engine.drop(int_ids)

    async def check(self, timeout_s: float) -> None:
        """Compare with what the engine holds, and end requests whose adapter was lost.

        Raises TimeoutError when the engine's loop does not turn, and what the engine raises when it is dead.
        """
        async with asyncio.timeout(timeout_s), self._turn:  # a load that does not end counts, too
            status = await self._engine.status(timeout_s)
            self.residents.replace(status.resident)
            for int_id, reason in status.lost:
                log.error("adapter.lost", int_id=int_id, reason=reason)
                self.residents.end(int_id)
            if status.lost:
                await self._drop([int_id for int_id, _ in status.lost])


async def stage(record: AdapterRecord, blobs: Blobs) -> None:
    """Have a published model's folder on this disk.

    Raises AdapterRejected when that does not work, StorageUnavailable when it may work later.
    """
    home = blobs.paths.home
    folder = home / record.folder
    if not folder.resolve().is_relative_to(home):
        return  # verify_record says so
    try:
        await blobs.fetch(folder)
    except FileNotFoundError:
        return  # verify_record says what is missing
    except OSError as error:
        raise AdapterRejected(f"its files cannot be fetched: {error.strerror or type(error).__name__}") from error


def verify_record(record: AdapterRecord, base: BaseRecord, home: Path, *, max_rank: int) -> None:
    """Check the bytes and the form of a published adapter against its base. Raises AdapterRejected."""
    folder = (home / record.folder).resolve()
    if not folder.is_relative_to(home):
        raise AdapterRejected("its folder lies outside the data folder")
    if record.base_fingerprint != base.fingerprint:
        raise AdapterRejected("it was trained on another base model of the same name")
    verify_adapter(
        folder,
        base_folder=Path(base.path),
        base_id=base.id,
        max_rank=max_rank,
        expected_sha256=record.sha256,
    )
