"""What the worker's parts share: one connection to Redis, the stores on it, settings and paths."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from services.trainer import metrics
from shared import ids
from shared.blobs.opening import open_blobs
from shared.errors import StorageUnavailable, StoreUnavailable
from shared.paths import Paths, internal_key
from shared.queue import Queue
from shared.records import JobRecord
from shared.settings import Settings
from shared.store.client import Client
from shared.store.files import FileStore
from shared.store.jobs import JobStore
from shared.store.leases import LeaseStore
from shared.store.presence import Presence
from shared.store.registry import Registry
from shared.store.usage import UsageStore

RETRY_S = 0.5

T = TypeVar("T")
log = structlog.get_logger()


class Stores:
    """Open with a running event loop; close() at the end."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.paths = Paths(settings.home)
        self.paths.prepare()
        self.blobs = open_blobs(settings, self.paths)
        self.client = Client(settings.database_url, watch=metrics.note_store_call)
        self.files = FileStore(self.client)
        self.jobs = JobStore(self.client)
        self.leases = LeaseStore(self.client, ttl_s=settings.lease_ttl_s)
        self.presence = Presence(self.client)
        self.registry = Registry(self.client)
        self.usage = UsageStore(self.client)
        self.queue = Queue(settings.database_url)

    def internal_key(self) -> str:
        """The bearer key that replicas ask for."""
        return internal_key(self.settings.internal_key, self.paths)

    async def enqueue(self, record: JobRecord) -> None:
        """Ask a worker to look at a job: to validate its files, or to train."""
        await self.queue.put(record, order=await self.jobs.order(record))

    async def close(self) -> None:
        await self.queue.close()
        await self.client.close()


async def persist_once(write: Callable[[str], Awaitable[T]]) -> T:
    """The same for a write that must not be done twice: it gets a nonce to tell that it is a repetition by."""
    nonce = ids.new_token()
    return await persist(lambda: write(nonce))


async def persist(write: Callable[[], Awaitable[T]]) -> T:
    """Repeat a write until Redis or the object store takes it: a training run outlives a restart of either."""
    while True:
        try:
            return await write()
        except (StoreUnavailable, StorageUnavailable):
            log.warning("store.unavailable", retry_s=RETRY_S)
            await asyncio.sleep(RETRY_S)
