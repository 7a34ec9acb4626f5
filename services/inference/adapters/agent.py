"""Keeps an engine in step with the registry, and hands out leases on its adapters.

The registry says which adapters should exist. The agent loads what is published, if this replica is one of its owners,
drops what is retired, and looks up by itself what a request names before the news arrives. An adapter that failed is
refused with its reason, and tried again after a while at its next request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import structlog

from services.inference import metrics
from services.inference.adapters.failures import Failures
from services.inference.adapters.leases import Lease
from services.inference.adapters.loader import AdapterLoader, NoPlace, NotWanted
from services.inference.adapters.reports import Reports
from services.inference.adapters.single_flight import SingleFlight
from services.inference.adapters.turns import Busy, Turns
from services.inference.adapters.uses import Uses
from shared import tracing
from shared.errors import AdapterRejected, StorageUnavailable, StoreUnavailable
from shared.records import AdapterRecord, Residency
from shared.store.registry import CursorLost, Registry, unknown_model

log = structlog.get_logger()

QUEUE_S = 5.0
"""How long a request whose turn it is waits for a place in memory, before it is sent away."""
_BLOCK_MS = 1000
_RETRY_S = 1.0
_LOOK_UP_S = 5.0
_PREWARM = 16


class AdapterAgent:
    """The adapters of one base on one engine. All methods run on one event loop."""

    def __init__(
        self,
        *,
        base_id: str,
        registry: Registry,
        reports: Reports,
        loader: AdapterLoader,
        turns: Turns,
        uses: Uses,
        is_owner: Callable[[str], Awaitable[bool]],
    ) -> None:
        self.base_id = base_id
        self.turns = turns
        self._loader = loader
        self._loads = SingleFlight()
        self._residents = loader.residents
        self._registry = registry
        self._reports = reports
        self._uses = uses
        self._is_owner = is_owner
        self._known: dict[str, AdapterRecord] = {}
        self._by_id: dict[int, AdapterRecord] = {}
        self._failures = Failures()
        self._draining: set[asyncio.Task[None]] = set()
        self._to_warm: list[str] = []
        self._cursor = "0-0"

    async def start(self) -> None:
        """Learn every adapter of the base; retries while Redis is away. `follow` then loads the ones used most."""
        while True:
            try:
                return await self._resync()
            except StoreUnavailable:
                await asyncio.sleep(_RETRY_S)

    async def follow(self) -> None:
        """Apply the registry's changes until cancelled. Raises when the engine is dead."""
        while True:
            try:
                await self._apply_changes()
                await self._warm_next()
            except CursorLost:
                await self.start()
            except StoreUnavailable:
                await asyncio.sleep(_RETRY_S)

    async def acquire(self, name: str) -> Lease:
        """Return a lease on the adapter `name`, loading it if needed; `release` it when the answer is out.

        Raises NotFound, AdapterRejected with the stored reason, Busy when its turn or a place did not come in time, or
        StoreUnavailable when the name is new and the registry does not answer, StorageUnavailable when its files are
        not here and the object store does not answer.
        """
        record = self._known.get(name) or await self._look_up(name)
        self._check_failed(record)
        with metrics.TURN_SECONDS.time():
            await self.turns.enter(record.int_id)
        try:
            await self._make_resident(record)
            if not self._is_wanted(record):  # deleted while the request waited, and about to go from memory
                raise unknown_model(name)
        except BaseException:
            self.turns.leave(record.int_id)
            raise
        self._uses.note(name)
        lease = self._loader.lease(record)
        self._residents.add(lease)
        return lease

    def release(self, lease: Lease) -> None:
        """Give a lease back; releasing it twice counts once."""
        if self._residents.release(lease):
            self.turns.leave(lease.int_id)

    def names(self) -> list[str]:
        """List the public names of the adapters in memory."""
        return sorted(self._by_id[int_id].name for int_id in self._residents.ids() if int_id in self._by_id)

    def numbers(self) -> dict[str, int]:
        """Count adapters and those who wait for them, for metrics."""
        return {
            "adapters_registered": len(self._known),
            "adapters_pinned": len(self._residents.pinned),
            "adapters_waiting": self.turns.waiting,
        }

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
            except NoPlace:
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
        return self._known.get(name) or self._know(record)

    def _know(self, record: AdapterRecord) -> AdapterRecord:
        self._known[record.name] = self._by_id[record.int_id] = record
        return record

    async def _load(self, record: AdapterRecord) -> None:
        """Load once for all who ask.

        Raises NoPlace, NotWanted, StorageUnavailable, or AdapterRejected with a sentence for the client.
        """
        self._check_failed(record)
        await self._loads.run(record.int_id, lambda: self._load_and_report(record))
        self._check_failed(record)

    def _check_failed(self, record: AdapterRecord) -> None:
        if failure := self._failures.standing(record.int_id):
            sentence = f"The model '{record.name}' cannot be served: {failure.reason}"
            raise AdapterRejected(sentence, code="adapter_unavailable", param="model")

    async def _load_and_report(self, record: AdapterRecord) -> None:
        self._reports.note(record.name, Residency(state="loading"))
        try:
            with tracing.span("adapter.load", model=record.name, job_id=record.job_id):
                loaded = await self._loader.load(record, lambda: self._is_wanted(record))
        except AdapterRejected as refusal:
            failure = self._failures.note(record.int_id, refusal.message)
            metrics.LOADS.labels("refused").inc()
            log.warning("adapter.failed", adapter=record.name, reason=refusal.message, times=failure.times)
            self._reports.note(
                record.name, Residency(state="quarantined" if failure.is_final else "failed", reason=refusal.message)
            )
            return
        except (NoPlace, NotWanted, StorageUnavailable) as reason:
            self._reports.note(record.name, Residency(state="staged", reason=reason.message))
            raise
        metrics.LOADS.labels("loaded").inc()
        metrics.LOAD_SECONDS.observe(loaded.load_ms / 1000)
        log.info("adapter.warm", adapter=record.name, load_ms=round(loaded.load_ms, 1))
        self._failures.forget(record.int_id)
        self._reports.note(record.name, Residency(state="warm", load_ms=loaded.load_ms))
        self._note_evicted(loaded.evicted)

    def _note_evicted(self, evicted: list[int]) -> None:
        metrics.EVICTIONS.inc(len(evicted))
        for int_id in evicted:
            if record := self._by_id.get(int_id):
                self._reports.note(record.name, Residency(state="staged", reason="another adapter needed its place"))

    async def _resync(self) -> None:
        cursor, records = await self._registry.snapshot(self.base_id)
        wanted = {record.name for record in records}
        for name in [name for name in self._known if name not in wanted]:
            self._retire(name)
        for record in records:
            self._learn(record)
        await self._learn_pins()
        newest = sorted(records, key=lambda record: (-record.created_at, -record.int_id))
        by_use = await self._uses.most_used(_PREWARM)
        await self._warm_later([*by_use, *(record.name for record in newest[:_PREWARM])])
        self._cursor = cursor
        log.info("registry.synced", adapters=len(records), to_warm=len(self._to_warm))

    async def _warm_later(self, names: Iterable[str]) -> None:
        """Line up the pinned adapters, and of the others those that belong here, as many as is worth waiting for."""
        pinned = [self._by_id[int_id].name for int_id in self._residents.pinned]
        mine = [name for name in dict.fromkeys(names) if name in self._known and await self._is_owner(name)]
        room = max(min(_PREWARM, self._residents.capacity) - len(pinned), 0)
        self._to_warm = [*pinned, *[name for name in mine if name not in pinned][:room]]

    async def _warm_next(self) -> None:
        if self._to_warm and (record := self._known.get(self._to_warm.pop(0))):
            await self._warm(record)

    async def _learn_pins(self) -> None:
        """Learn which adapters stay in memory; the oldest, when there are more than a quarter of it has places for."""
        pinned = await self._registry.pinned()
        records = [record for record in self._known.values() if record.name in pinned]
        limit = max(self._residents.capacity // 4, 1)
        if len(records) > limit:
            log.warning("adapter.too_many_pinned", pinned=len(records), kept=limit)
        kept = sorted(records, key=lambda record: (record.created_at, record.name))[:limit]
        self._residents.pinned = {record.int_id for record in kept}

    async def _apply_changes(self) -> None:
        block_ms = 1 if self._to_warm else _BLOCK_MS
        cursor, changes = await self._registry.changes(self._cursor, block_ms=block_ms)
        ours = [change for change in changes if change.base == self.base_id]
        asked_for = {change.name for change in ours if change.action == "wanted"}
        for name in dict.fromkeys(change.name for change in ours):
            await self._converge(name, asked_for=name in asked_for)
        self._cursor = cursor

    async def _converge(self, name: str, *, asked_for: bool) -> None:
        """Bring one adapter to what the registry says now; the change itself may be old news."""
        record = await self._registry.get(name)
        if record is None:
            self._retire(name)
            return
        if record.whole:
            return
        self._learn(record)
        if asked_for:
            self._failures.forget(record.int_id)
            await self._learn_pins()
        if record.int_id in self._residents.pinned or await self._is_owner(name):
            await self._warm(record)

    def _learn(self, record: AdapterRecord) -> None:
        previous = self._known.get(record.name)
        self._know(record)
        if previous is not None and previous.int_id != record.int_id:
            self._drain_later(previous, gone=False)

    async def _warm(self, record: AdapterRecord) -> None:
        if record.int_id in self._residents:
            return
        try:
            await self._load(record)
        except (NoPlace, AdapterRejected, NotWanted, StorageUnavailable) as refusal:
            log.debug("adapter.not_loaded", adapter=record.name, reason=refusal.message)

    def _retire(self, name: str) -> None:
        """Stop answering for `name` now; its memory is freed when the last answer is out."""
        record = self._known.pop(name, None)
        if record is not None:
            self._reports.note(name, Residency(state="draining"))
            self._drain_later(record, gone=True)

    def _drain_later(self, record: AdapterRecord, *, gone: bool) -> None:
        self._residents.pinned.discard(record.int_id)
        task = asyncio.create_task(self._drain(record, gone=gone))
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)

    async def _drain(self, record: AdapterRecord, *, gone: bool) -> None:
        while not await self._loader.drop_idle(record.int_id):
            change = self._residents.next_change()
            if self._residents.leased(record.int_id):
                await change.wait()
        self._by_id.pop(record.int_id, None)
        self._failures.forget(record.int_id)
        if gone and record.name not in self._known:
            self._reports.note(record.name, Residency(state="gone"))
        metrics.UNLOADS.inc()
        log.info("adapter.gone", adapter=record.name, version=record.version)


async def _wait_until(change: asyncio.Event, deadline: float) -> None:
    try:
        async with asyncio.timeout_at(deadline):
            await change.wait()
    except TimeoutError:
        raise Busy("The server is answering for too many fine-tuned models at once; please try again.") from None
