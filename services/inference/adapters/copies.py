"""Adapters' files on this host that no model needs any more, where an object store has the originals."""

from __future__ import annotations

import asyncio

import structlog

from shared.blobs.copies import drop_copies
from shared.blobs.opening import open_blobs
from shared.errors import StorageUnavailable, StoreUnavailable
from shared.paths import Paths
from shared.settings import Settings
from shared.store.client import Client
from shared.store.jobs import JobStore

_PERIOD_S = 3600.0

log = structlog.get_logger()


async def drop_forever(settings: Settings) -> None:
    """Look at once and then every hour. An adapter in the engine's memory needs its files no more."""
    paths = Paths(settings.home)
    paths.prepare()
    blobs, client = open_blobs(settings, paths), Client(settings.database_url)
    try:
        while True:
            try:
                await drop_copies(blobs, JobStore(client).active)  # a trainer may use the same folder
            except (StorageUnavailable, StoreUnavailable, OSError) as error:
                log.warning("copies.unavailable", reason=type(error).__name__)
            await asyncio.sleep(_PERIOD_S)
    finally:
        await client.close()
