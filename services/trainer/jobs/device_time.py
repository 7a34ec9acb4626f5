"""What an attempt takes of its devices: in the job's record, and in its project's usage of the day.

The record has the seconds of earlier attempts and the sum; a worker that dies leaves what it wrote last, some seconds
before. The usage gets the difference each time; what a worker that dies has not told is missing there.
"""

from __future__ import annotations

import asyncio

import structlog
from msgspec.structs import replace

from services.trainer.launch.gpus import gpu_count
from services.trainer.launch.launching import Launcher
from services.trainer.stores import Stores
from shared.errors import NotFound, StoreUnavailable
from shared.records import JobRecord
from shared.store.usage import Day, Pace, Used, pace_kind, today
from shared.token_cache import read_meta

log = structlog.get_logger()


class DeviceTime:
    """Of one attempt, from its making to `leave`."""

    def __init__(self, stores: Stores, launcher: Launcher, record: JobRecord) -> None:
        self._stores = stores
        self._clock = launcher.clock
        self._record = record
        self._told_ms = 0
        self._clock.enter(record.id, devices=launcher.process_count(record) if gpu_count() else 1)

    @property
    def total_s(self) -> float:
        """Device seconds of all attempts so far."""
        return round(self._record.earlier_device_seconds + self._clock.spent(self._record.id), 3)

    def on(self, current: JobRecord) -> JobRecord:
        """Return the record with the time up to now."""
        return replace(current, device_seconds=self.total_s)

    async def tell(self) -> None:
        """Count what has been spent since the last time towards the project's usage; Redis may be away.

        Where Redis counts and its reply is lost, the same time is told again and counts twice there; the job's own
        cost is a total, and does not.
        """
        spent_ms = round(self._clock.spent(self._record.id) * 1000)
        more = spent_ms - self._told_ms
        counts = {Used("device_ms", self._record.model_name): more}
        try:
            await self._stores.usage.add({Day(self._record.project, today()): counts})
            self._told_ms = spent_ms
        except StoreUnavailable:
            log.warning("usage.not_told", job_id=self._record.id)

    async def note_pace(self, tokens: int) -> None:
        """Count a job that succeeded among those whose speed is known; it trained so many tokens, prompts included."""
        record, stores = self._record, self._stores
        try:
            job = Pace(
                jobs=1,
                tokens=tokens,
                device_ms=round(self.total_s * 1000),
                memory_bytes=record.estimated_memory_bytes or 0,
                **await self._file_sizes(),
            )
            await stores.usage.add_pace(record.model, pace_kind(record.method, record.options), job)
        except StoreUnavailable:
            log.warning("pace.not_noted", job_id=record.id)

    async def _file_sizes(self) -> dict[str, int]:
        """Return bytes and tokens of the training file; nothing where either is not known any more."""
        try:
            file = await self._stores.files.get(self._record.training_file, project=self._record.project)
            meta = await asyncio.to_thread(read_meta, self._stores.paths.token_folder(self._record.training_tokens))
        except (NotFound, OSError, ValueError):
            return {}
        return {"file_bytes": file.size_bytes, "file_tokens": meta.tokens}

    def leave(self) -> None:
        self._clock.leave(self._record.id)
