"""The database has the form that this code knows before anything uses it, also when it is away as the api starts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from shared.errors import SchemaTooNew, StoreUnavailable
from shared.settings import Settings
from shared.store.client import Client
from shared.store.schema import bring_up_to_date, ensure_schema

_log = structlog.get_logger()


class Database:
    """Requests wait for `ready`; what runs beside them is started by `start`."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._is_ready = False
        self._one_at_a_time = asyncio.Lock()
        self._waiting: asyncio.Task[None] | None = None

    async def ready(self) -> None:
        """Return once the form is right; the first that finds the database sees to it.

        Raises StoreUnavailable, and SchemaTooNew when a newer version has written it.
        """
        if self._is_ready:
            return
        async with self._one_at_a_time:
            if not self._is_ready:
                await bring_up_to_date(self._client, self._settings)
                self._is_ready = True

    async def start(self, parts: Callable[[], Awaitable[None]]) -> None:
        """Start `parts` once the form is right, now or when the database comes. Raises SchemaTooNew."""
        try:
            await self.ready()
        except StoreUnavailable:
            self._waiting = asyncio.create_task(self._start_later(parts), name="database")
        else:
            await parts()

    async def close(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.gather(self._waiting, return_exceptions=True)

    async def _start_later(self, parts: Callable[[], Awaitable[None]]) -> None:
        try:
            await ensure_schema(self._client, self._settings)
        except SchemaTooNew as error:
            _log.error("database.too_new", reason=error.message)
            return
        await parts()
