"""The key guard."""

from __future__ import annotations

from typing import Any

import structlog
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.handlers import BaseRouteHandler

from shared import ids
from shared.errors import NotAuthenticated, StoreUnavailable
from shared.paths import Paths, read_or_create_secret
from shared.records import KeyRecord
from shared.store.api_keys import KeyStore

_log = structlog.get_logger()

PUBLIC = "public"
"""Handler option: no key is needed."""


class Authenticator:
    """Knows keys, and sees to it that the first of them, the admin key, is known to the database."""

    def __init__(self, keys: KeyStore, paths: Paths) -> None:
        self._keys = keys
        self._admin_key, created = read_or_create_secret(paths.admin_key, ids.new_api_key())
        self._admin_stored = False
        if created:
            _log.info("admin_key.created", path=str(paths.admin_key))

    async def start(self) -> None:
        """Store the admin key if the database answers; if not, the first request that finds it does."""
        try:
            await self._store_admin_key()
        except StoreUnavailable:
            _log.warning("admin_key.pending", reason="the database does not answer")

    async def authenticate(self, header: str | None) -> KeyRecord:
        """Return what the bearer of an Authorization header may see. Raises NotAuthenticated, StoreUnavailable."""
        key = _bearer(header)
        await self._store_admin_key()
        return await self._keys.authenticate(key)

    async def _store_admin_key(self) -> None:
        if not self._admin_stored:
            await self._keys.ensure(self._admin_key, name="admin")
            self._admin_stored = True


def _bearer(header: str | None) -> str:
    scheme, _, key = (header or "").strip().partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise NotAuthenticated(
            "You didn't provide an API key. Send it in an Authorization header, as in 'Authorization: Bearer YOUR_KEY'."
        )
    return key.strip()


async def require_key(connection: ASGIConnection[Any, Any, KeyRecord, State], handler: BaseRouteHandler) -> None:
    """Guard of every route that is not public; puts the caller's KeyRecord into `connection.auth`."""
    if handler.opt.get(PUBLIC):
        return
    authenticator: Authenticator = connection.app.state.services.authenticator
    connection.scope["auth"] = await authenticator.authenticate(connection.headers.get("authorization"))
