"""Administration of the organization's own keys."""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog

from services.api.organization import key_views as views
from services.api.organization.keys import check_current, from_now
from shared.errors import InvalidRequest
from shared.records import DEFAULT_PROJECT, KeyRecord
from shared.schemas import organization as wire
from shared.store.api_keys import KeyStore

_log = structlog.get_logger()


class AdminKeys:
    """Every method raises NotFound for ids that are unknown or a project's."""

    def __init__(self, organization: str, keys: KeyStore) -> None:
        self._name = organization
        self._keys = keys

    async def create(self, wanted: wire.CreateAdminKey) -> wire.NewAdminKey:
        """Create a key that administers the organization and does nothing else."""
        record = KeyRecord(
            project=DEFAULT_PROJECT,
            name=wanted.name,
            created_at=int(time.time()),
            kind="admin",
            scopes=("admin",),
            expires_at=from_now(wanted.expires_in_seconds),
        )
        key, value = await self._keys.create(record)
        _log.info("admin_key.created", key_id=key.id)
        return views.new_admin_key(key, value, self._name)

    async def key(self, key_id: str) -> wire.AdminKey:
        record = await self._keys.get(key_id, project=None)
        return views.admin_key(record, self._name, (await self._keys.last_used([key_id])).get(key_id))

    async def keys(self, *, after: str | None, limit: int, newest_first: bool) -> tuple[Sequence[wire.AdminKey], bool]:
        records, more = await self._keys.list(None, after=after, limit=limit, newest_first=newest_first)
        used = await self._keys.last_used([record.id for record in records])
        return [views.admin_key(record, self._name, used.get(record.id)) for record in records], more

    async def rotate(self, key_id: str, wanted: wire.RotateKey) -> wire.NewAdminKey:
        """Give an admin key another value; that of the data folder is in a file, which is replaced there."""

        def check(current: KeyRecord) -> None:
            check_current(current)
            if current.kind == "built_in":
                raise InvalidRequest(
                    f"{key_id} is the server's own admin key, kept in its data folder; replace it there, with "
                    "`selftune keys rotate-admin`.",
                    code="built_in_key",
                    param="key_id",
                )

        record, value = await self._keys.rotate(key_id, check, project=None, grace_s=wanted.grace_s)
        _log.info("admin_key.rotated", key_id=key_id, grace_s=wanted.grace_s)
        return views.new_admin_key(record, value, self._name)

    async def revoke(self, key_id: str) -> None:
        """Revoke an admin key; the one that the data folder keeps would come back, so it is refused."""
        if (await self._keys.get(key_id, project=None)).kind == "built_in":
            raise InvalidRequest(
                f"{key_id} is the server's own admin key, kept in its data folder; it cannot be deleted over the API.",
                code="built_in_key",
                param="key_id",
            )
        await self._keys.revoke(key_id, project=None)
        _log.info("admin_key.revoked", key_id=key_id)
