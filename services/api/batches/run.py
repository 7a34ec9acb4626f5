"""One batch from where it is to its end, by the process that holds its lease. It may die between any two lines."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import structlog
from msgspec.structs import replace

from services.api.batches.answering import Answering
from services.api.batches.ending import ENDS, counted, fill
from services.api.batches.input_file import InputFile, read_input
from services.api.batches.output_files import OutputFiles
from services.api.batches.results import Results
from services.api.batches.slots import Slots
from services.api.batches.working import Working
from services.api.gateway.forwarding import Gateway
from services.api.stores import Stores
from shared.batch_records import BatchRecord
from shared.batch_states import ENDED, BatchState
from shared.blobs.interface import Blobs
from shared.blobs.local import LocalBlobs
from shared.errors import NoReplica, StorageUnavailable, StoreUnavailable
from shared.schemas.batches import BatchError, BatchRequestCounts
from shared.settings import Settings
from shared.store.batches import BatchStore, Change
from shared.store.leases import LeaseStore

_log = structlog.get_logger()

_KEEP_S = 5.0
"""How often results go into an object store: another host that takes the batch over asks again what came since."""
_BEAT_S = 1.0
"""How often progress is recorded and the record looked at: a cancellation is seen so soon."""


@dataclass(frozen=True)
class Tools:
    """What every run needs. `concurrency` is the number of requests under way, `max_line_bytes` the largest one."""

    batches: BatchStore
    leases: LeaseStore
    answering: Answering
    files: OutputFiles
    blobs: Blobs
    concurrency: int
    max_line_bytes: int

    @classmethod
    def of(cls, settings: Settings, stores: Stores, blobs: Blobs, gateway: Gateway) -> Tools:
        slots = Slots(settings.batch_concurrency)
        return cls(
            batches=stores.batch_store,
            leases=stores.batch_leases,
            answering=Answering(gateway, stores.completions, stores.responses, slots),
            files=OutputFiles(stores.files, blobs),
            blobs=blobs,
            concurrency=settings.batch_concurrency,
            max_line_bytes=settings.max_body_bytes,
        )


def is_over(record: BatchRecord, now: float) -> bool:
    """Tell whether nothing will be asked for the batch any more at `now` (Unix time), only its files be made."""
    return record.status in (BatchState.CANCELLING, BatchState.FINALIZING) or record.expires_at <= now


class Run:
    """Works on the batch while its lease, known by `token`, is held."""

    def __init__(self, tools: Tools, batch_id: str, token: str) -> None:
        self._tools = tools
        self._id = batch_id
        self._token = token
        self._stop = asyncio.Event()
        """Set when the batch was cancelled, or its time is over."""
        self._results: Results | None = None
        self._unkept: list[Path] = []
        """Segments of results that only this host has."""
        self._keeping = asyncio.Lock()

    async def go(self) -> None:
        """Bring the batch to its end.

        Raises NoReplica when only models without a server are left, LeaseLost, Unavailable, OSError; then it is taken
        up again.
        """
        work, beat = asyncio.create_task(self._work()), asyncio.create_task(self._beat())
        keeping = asyncio.create_task(self._keep_results_forever())
        try:
            done, _ = await asyncio.wait({work, beat, keeping}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (keeping, work, beat):
                task.cancel()
            await asyncio.gather(keeping, work, beat, return_exceptions=True)

    async def _keep_results_forever(self) -> None:
        while True:
            await asyncio.sleep(_KEEP_S)
            try:
                await self._keep_results()
            except StorageUnavailable:
                _log.warning("batch.storage_away", batch_id=self._id)

    async def _beat(self) -> None:
        """Keep the lease, tell how far the batch is, and see what its owner wants. Raises LeaseLost."""
        while True:
            try:
                await self._tools.leases.renew(self._id, self._token)
                record = await self._update(self._with_progress)
            except StoreUnavailable:
                _log.warning("batch.store_away", batch_id=self._id)
            else:
                if record.status is BatchState.CANCELLING or record.expires_at <= time.time():
                    self._stop.set()
            await asyncio.sleep(_BEAT_S)

    async def _work(self) -> None:
        record = await self._tools.batches.get(self._id)
        found = await self._read_input(record)
        if record.status in (BatchState.VALIDATING, BatchState.IN_PROGRESS):
            record = await self._begin(found)
        if record.status not in ENDED:
            await self._bring_to_end(record, found)
        await self._tools.blobs.remove(self._tools.blobs.paths.batch_folder(self._id))

    async def _read_input(self, record: BatchRecord) -> InputFile:
        path = self._tools.blobs.paths.batch_input(record.id)
        # What was good at the start stays good, whatever the limit is today.
        limit = self._tools.max_line_bytes if record.status is BatchState.VALIDATING else sys.maxsize
        try:
            await self._tools.blobs.fetch_file(path)
            return await asyncio.to_thread(read_input, path, record.endpoint, max_line_bytes=limit)
        except FileNotFoundError:
            message = "The input is gone from this server's storage."
            return InputFile(path, errors=[BatchError(code="input_file_missing", message=message)])

    async def _begin(self, found: InputFile) -> BatchRecord:
        """Let a batch with good input begin, and one with wrong input fail."""

        def begin(current: BatchRecord) -> BatchRecord:
            now = int(time.time())
            if current.status not in (BatchState.VALIDATING, BatchState.IN_PROGRESS):
                return current
            if found.errors:
                return replace(current, status=BatchState.FAILED, errors=found.errors, failed_at=now)
            if current.status is BatchState.IN_PROGRESS:
                return current
            return replace(
                current,
                status=BatchState.IN_PROGRESS,
                in_progress_at=now,
                model=next(iter(found.models)) if len(found.models) == 1 else None,
                counts=BatchRequestCounts(total=len(found.places)),
            )

        record = await self._update(begin)
        _log.info("batch.begun", batch_id=self._id, status=record.status.value, requests=record.counts.total)
        return record

    async def _bring_to_end(self, record: BatchRecord, found: InputFile) -> None:
        folder = self._tools.blobs.paths.batch_results(self._id)
        await self._fetch_results(folder)
        results = self._results = await asyncio.to_thread(Results.load, folder, self._token)
        try:
            if record.status is BatchState.IN_PROGRESS:
                if is_over(record, time.time()):
                    self._stop.set()
                work = Working(self._tools.answering, record, found, results)
                await work.answer_all(concurrency=self._tools.concurrency, stop=self._stop)
            await self._end(found, results)
        except NoReplica:
            await self._update(self._with_progress)
            raise
        finally:
            with suppress(StorageUnavailable):
                await self._keep_results()
            await asyncio.to_thread(results.close)

    async def _fetch_results(self, folder: Path) -> None:
        """Have here what other processes have answered."""
        here = await LocalBlobs(self._tools.blobs.paths).files(folder)
        for name in (await self._tools.blobs.files(folder)).keys() - here.keys():
            await self._tools.blobs.fetch_file(folder / name)

    async def _keep_results(self) -> None:
        """Let other hosts have what was answered since the last time; on this one's disk it is already."""
        if self._tools.blobs.is_local or self._results is None:
            return
        async with self._keeping:
            segment = await asyncio.to_thread(self._results.cut)
            if segment is not None:
                self._unkept.append(segment)
            while self._unkept:
                await self._tools.blobs.keep_file(self._unkept[0])
                self._unkept.pop(0)

    async def _end(self, found: InputFile, results: Results) -> None:
        """Give the requests that are left their error, publish the files, then record the end."""
        record = await self._update(self._finalizing)
        assert record.status is not BatchState.IN_PROGRESS or self._stop.is_set(), "requests have no result"
        end, reason = ENDS[record.status]
        if reason is not None and record.in_progress_at is not None and not found.errors:
            await asyncio.to_thread(fill, found, results, reason)
        output, error = await self._tools.files.publish(record, results)

        def finish(current: BatchRecord) -> BatchRecord:
            # Cancelled after its time was over: that is how it ends, with the same files.
            status = BatchState.CANCELLED if current.status is BatchState.CANCELLING else end
            times: dict[str, Any] = {f"{status.value}_at": int(time.time())}
            current = replace(current, status=status, output_file_id=output, error_file_id=error, **times)
            return counted(current, results)

        record = await self._update(finish)
        counts = msgspec.structs.asdict(record.counts)
        _log.info("batch.ended", batch_id=self._id, status=record.status.value, **counts)

    def _finalizing(self, current: BatchRecord) -> BatchRecord:
        if current.status is BatchState.IN_PROGRESS and len(self._results or ()) >= current.counts.total:
            current = replace(current, status=BatchState.FINALIZING, finalizing_at=int(time.time()))
        return self._with_progress(current)

    def _with_progress(self, current: BatchRecord) -> BatchRecord:
        if self._results is None or current.status in ENDED:
            return current
        return counted(current, self._results)

    async def _update(self, change: Change) -> BatchRecord:
        return await self._tools.batches.update(self._id, change, fence=self._token)
