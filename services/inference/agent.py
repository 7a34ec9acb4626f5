"""Keeps an engine in step with the registry, and hands out leases on its adapters.

The registry says which adapters should exist. The agent loads what is published, drops what is retired, and looks up
by itself what a request names before the news arrives. An adapter that failed is refused with its reason, and tried
again after a while at its next request.
"""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

import structlog

from services.inference.leases import Lease
from services.inference.loader import AdapterLoader, Busy, NotWanted
from services.inference.reports import Reports
from services.inference.single_flight import SingleFlight
from shared.errors import AdapterRejected, StoreUnavailable
from shared.records import AdapterRecord, Residency
from shared.store.registry import CursorLost, Registry, unknown_model

log = structlog.get_logger()

QUEUE_S = 5.0
"""How long a request waits for other adapters' requests to end before it is sent away."""
RETRY_FAILED_S = 30.0
"""How long an adapter that failed is refused without another look at its files."""
_BLOCK_MS = 1000
_RETRY_S = 1.0
_LOOK_UP_S = 5.0
_PREWARM = 16


class Failure(NamedTuple):
    """Why an adapter cannot be served, and until when (monotonic seconds) that stands."""

    reason: str
    until: float


class AdapterAgent:
    """The adapters of one base on one engine. All methods run on one event loop."""

    def __init__(
        self,
        *,
        base_id: str,
        registry: Registry,
        reports: Reports,
        loader: AdapterLoader,
    ) -> None:
        self.base_id = base_id
        self._loader = loader
        self._loads = SingleFlight()
        self._residents = loader.residents
        self._registry = registry
        self._reports = reports
        self._known: dict[str, AdapterRecord] = {}
        self._failed: dict[int, Failure] = {}
        self._draining: set[asyncio.Task[None]] = set()
        self._cursor = "0-0"

    async def start(self) -> None:
        """Learn every adapter of the base and load the newest; retries while Redis is away."""
        while True:
            try:
                return await self._resync()
            except StoreUnavailable:
                await asyncio.sleep(_RETRY_S)

    async def follow(self) -> None:
        """Apply the registry's changes until cancelled. Raises when the engine is dead."""
        while True:
            try:
                cursor, changes = await self._registry.changes(self._cursor, block_ms=_BLOCK_MS)
                for name in dict.fromkeys(change.name for change in changes if change.base == self.base_id):
                    await self._converge(name)
                self._cursor = cursor
            except CursorLost:
                await self.start()
            except StoreUnavailable:
                await asyncio.sleep(_RETRY_S)

    async def acquire(self, name: str) -> Lease:
        """Return a lease on the adapter `name`, loading it if needed; `release` it when the answer is out.

        Raises NotFound, AdapterRejected with the stored reason, Busy when no place came free in time, or
        StoreUnavailable when the name is new and the registry does not answer.
        """
        record = self._known.get(name) or await self._look_up(name)
        await self._make_resident(record)
        lease = self._loader.lease(record)
        lease.task = asyncio.current_task()
        self._residents.add(lease)
        return lease

    def release(self, lease: Lease) -> None:
        self._residents.release(lease)

    def names(self) -> list[str]:
        """List the public names of the adapters in memory."""
        return sorted(record.name for record in self._known.values() if record.int_id in self._residents)

    def _is_wanted(self, record: AdapterRecord) -> bool:
        current = self._known.get(record.name)
        return current is not None and current.int_id == record.int_id

    async def _make_resident(self, record: AdapterRecord) -> None:
        """Load until it is there; only the time without a place for it counts against the queue."""
        deadline: float | None = None
        while record.int_id not in self._residents:
            change = self._residents.next_change()
            try:
                await self._load(record)
            except NotWanted:
                raise unknown_model(record.name) from None
            except Busy:
                deadline = deadline or asyncio.get_running_loop().time() + QUEUE_S
                await _wait_until(change, deadline)

    async def _look_up(self, name: str) -> AdapterRecord:
        try:
            async with asyncio.timeout(_LOOK_UP_S):
                record = await self._registry.get(name)
        except TimeoutError:
            raise StoreUnavailable("The database is slow to answer at the moment; please try again.") from None
        if record is None or record.base != self.base_id:
            raise unknown_model(name)
        return self._known.setdefault(name, record)

    async def _load(self, record: AdapterRecord) -> None:
        """Load once for all who ask. Raises Busy, NotWanted, or AdapterRejected with a sentence for the client."""
        if not self._has_failed(record):
            await self._loads.run(record.int_id, lambda: self._load_and_report(record))
        if failure := self._failed.get(record.int_id):
            sentence = f"The model '{record.name}' cannot be served: {failure.reason}"
            raise AdapterRejected(sentence, code="adapter_unavailable", param="model")

    def _has_failed(self, record: AdapterRecord) -> bool:
        """Tell whether it failed lately; a failure may have been the disk's and is looked at again after a while."""
        failure = self._failed.get(record.int_id)
        if failure is not None and failure.until < time.monotonic():
            del self._failed[record.int_id]
        return record.int_id in self._failed

    async def _load_and_report(self, record: AdapterRecord) -> None:
        before = set(self._residents.ids())
        try:
            loaded = await self._loader.load(record, lambda: self._is_wanted(record))
        except AdapterRejected as refusal:
            log.warning("adapter.failed", adapter=record.name, reason=refusal.message)
            self._failed[record.int_id] = Failure(refusal.message, time.monotonic() + RETRY_FAILED_S)
            self._reports.note(record.name, Residency(state="failed", reason=refusal.message))
            return
        log.info("adapter.warm", adapter=record.name, load_ms=round(loaded.load_ms, 1))
        self._reports.note(record.name, Residency(state="warm", load_ms=loaded.load_ms))
        self._note_evicted(before)

    def _note_evicted(self, before: set[int]) -> None:
        for record in self._known.values():
            if record.int_id in before and record.int_id not in self._residents:
                self._reports.note(record.name, Residency(state="evicted", reason="another adapter needed its place"))

    async def _resync(self) -> None:
        cursor, records = await self._registry.snapshot(self.base_id)
        wanted = {record.name for record in records}
        for name in [name for name in self._known if name not in wanted]:
            self._retire(name)
        newest_first = sorted(records, key=lambda record: -record.created_at)
        for position, record in enumerate(newest_first):
            await self._publish(record, warm=position < min(_PREWARM, self._residents.capacity))
        self._cursor = cursor
        log.info("registry.synced", adapters=len(records), resident=len(self._residents))

    async def _converge(self, name: str) -> None:
        """Bring one adapter to what the registry says now; the change itself may be old news."""
        record = await self._registry.get(name)
        if record is None:
            self._retire(name)
        elif not record.whole:
            await self._publish(record, warm=True)

    async def _publish(self, record: AdapterRecord, *, warm: bool) -> None:
        previous = self._known.get(record.name)
        self._known[record.name] = record
        if record.int_id not in self._residents and not self._has_failed(record):
            await self._warm(record) if warm else self._note_cold(record, "it loads at its first request")
        if previous is not None and previous.int_id != record.int_id:
            self._drain_later(previous, gone=False)

    async def _warm(self, record: AdapterRecord) -> None:
        try:
            await self._load(record)
        except Busy as busy:
            self._note_cold(record, busy.message)
        except (AdapterRejected, NotWanted) as refusal:
            log.debug("adapter.not_loaded", adapter=record.name, reason=refusal.message)

    def _note_cold(self, record: AdapterRecord, reason: str) -> None:
        self._reports.note(record.name, Residency(state="evicted", reason=reason))

    def _retire(self, name: str) -> None:
        """Stop answering for `name` now; its memory is freed when the last answer is out."""
        record = self._known.pop(name, None)
        if record is not None:
            self._reports.note(name, Residency(state="draining"))
            self._drain_later(record, gone=True)

    def _drain_later(self, record: AdapterRecord, *, gone: bool) -> None:
        task = asyncio.create_task(self._drain(record, gone=gone))
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)

    async def _drain(self, record: AdapterRecord, *, gone: bool) -> None:
        while self._residents.leased(record.int_id):
            await self._residents.next_change().wait()
        await self._loader.drop([record.int_id])
        if gone and record.name not in self._known:
            self._reports.note(record.name, Residency(state="gone"))
        log.info("adapter.gone", adapter=record.name, version=record.version)


async def _wait_until(change: asyncio.Event, deadline: float) -> None:
    try:
        async with asyncio.timeout_at(deadline):
            await change.wait()
    except TimeoutError:
        raise Busy("The server is answering for too many fine-tuned models at once; please try again.") from None
