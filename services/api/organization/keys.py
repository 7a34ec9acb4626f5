"""Administration of service accounts and of the keys that they own."""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog
from msgspec import UNSET
from msgspec.structs import replace

from services.api.organization import key_views as views
from services.api.organization.projects import check_active
from shared.errors import InvalidRequest
from shared.projects import ALL_SCOPES, USUAL_SCOPES, Limits, ProjectRecord, ServiceAccountRecord
from shared.records import KeyRecord
from shared.schemas import organization as wire
from shared.schemas.organization import GivenScope, Scope
from shared.store.api_keys import KeyStore
from shared.store.projects import ProjectStore, ServiceAccountStore

_log = structlog.get_logger()


class KeyAdmin:
    """Every method raises NotFound for ids that are unknown or another project's, and InvalidRequest to change what
    belongs to an archived project; deleting is always possible."""

    def __init__(self, projects: ProjectStore, accounts: ServiceAccountStore, keys: KeyStore) -> None:
        self._projects = projects
        self._accounts = accounts
        self._keys = keys

    async def create_account(self, project_id: str, wanted: wire.CreateServiceAccount) -> wire.NewServiceAccount:
        """Create a service account, and its first key unless that is not wanted."""
        check_active(await self._projects.get(project_id))
        if wanted.create_service_account_only:
            if wanted.expires_in_seconds is not None:
                raise InvalidRequest(
                    "A service account that is created without a key has none that could expire; "
                    "leave 'expires_in_seconds' or 'create_service_account_only' out.",
                    param="expires_in_seconds",
                )
            account = await self._accounts.create(project_id, wanted.name, "none")
            return _new_account(account, None)
        account = await self._accounts.create(project_id, wanted.name, "member")
        key, value = await self._create_key(account, wanted.name, expires_at=from_now(wanted.expires_in_seconds))
        return _new_account(account, views.new_key(key, value))

    async def account(self, project_id: str, account_id: str) -> ServiceAccountRecord:
        return await self._accounts.get(account_id, project=project_id)

    async def accounts(
        self, project_id: str, *, after: str | None, limit: int
    ) -> tuple[Sequence[ServiceAccountRecord], bool]:
        await self._projects.get(project_id)
        return await self._accounts.list(project_id, after=after, limit=limit)

    async def update_account(
        self, project_id: str, account_id: str, wanted: wire.UpdateServiceAccount
    ) -> ServiceAccountRecord:
        check_active(await self._projects.get(project_id))

        def change(current: ServiceAccountRecord) -> ServiceAccountRecord:
            return replace(current, name=wanted.name or current.name, role=wanted.role or current.role)

        return await self._accounts.update(account_id, change, project=project_id)

    async def delete_account(self, project_id: str, account_id: str) -> None:
        """Delete a service account and its keys."""
        await self._accounts.delete(account_id, project=project_id)
        _log.info("service_account.deleted", project=project_id, service_account=account_id)

    async def create_account_key(
        self, project_id: str, account_id: str, wanted: wire.CreateServiceAccountKey
    ) -> wire.NewKey:
        check_active(await self._projects.get(project_id))
        account = await self._accounts.get(account_id, project=project_id)
        key, value = await self._create_key(
            account,
            wanted.name or account.name,
            scopes=_granted(wanted.scopes),
            expires_at=from_now(wanted.expires_in_seconds),
        )
        return views.new_key(key, value)

    async def create_key(self, project_id: str, wanted: wire.CreateProjectKey) -> wire.NewProjectKey:
        """Create a key, and the service account that owns it."""
        project = await self._projects.get(project_id)
        check_active(project)
        options = wanted.selftune or wire.KeyOptions()
        expires_at = None if options.expires_at is UNSET else options.expires_at
        _check_future(expires_at)
        account = await self._accounts.create(project_id, wanted.name, "member")
        key, value = await self._create_key(
            account,
            wanted.name,
            scopes=_granted(options.scopes),
            expires_at=expires_at,
            limits=Limits().changed(options.limits),
        )
        return views.new_project_key(key, value, account, project)

    async def key(self, project_id: str, key_id: str) -> wire.ProjectKey:
        project = await self._projects.get(project_id)
        return (await self._shown(project, [await self._keys.get(key_id, project=project_id)]))[0]

    async def keys(self, project_id: str, *, after: str | None, limit: int) -> tuple[Sequence[wire.ProjectKey], bool]:
        project = await self._projects.get(project_id)
        records, more = await self._keys.list(project_id, after=after, limit=limit)
        return await self._shown(project, records), more

    async def update_key(self, project_id: str, key_id: str, wanted: wire.UpdateKey) -> wire.ProjectKey:
        project = await self._projects.get(project_id)
        check_active(project)
        options = wanted.selftune or wire.KeyOptions()
        expires_at = options.expires_at if wanted.expires_in_seconds is None else from_now(wanted.expires_in_seconds)
        _check_future(expires_at or None)
        scopes = options.scopes if wanted.scopes is None else wanted.scopes

        def change(current: KeyRecord) -> KeyRecord:
            check_current(current)
            return replace(
                current,
                scopes=current.scopes if scopes is None else _granted(scopes),
                expires_at=current.expires_at if expires_at is UNSET else expires_at,
                limits=current.limits.changed(options.limits),
            )

        record = await self._keys.update(key_id, change, project=project_id)
        return (await self._shown(project, [record]))[0]

    async def rotate_key(self, project_id: str, key_id: str, wanted: wire.RotateKey) -> wire.NewProjectKey:
        """Give a key another value; the former one works for as long as is wanted."""
        project = await self._projects.get(project_id)
        check_active(project)
        record, value = await self._keys.rotate(key_id, check_current, project=project_id, grace_s=wanted.grace_s)
        account = await self._accounts.get(record.service_account or "", project=project_id)
        _log.info("api_key.rotated", project=project_id, key_id=key_id, grace_s=wanted.grace_s)
        return views.new_project_key(record, value, account, project)

    async def revoke_key(self, project_id: str, key_id: str) -> None:
        """Revoke a key; it stops working at once."""
        await self._keys.revoke(key_id, project=project_id)
        _log.info("api_key.revoked", project=project_id, key_id=key_id)

    async def _create_key(
        self,
        account: ServiceAccountRecord,
        name: str,
        *,
        scopes: tuple[Scope, ...] = USUAL_SCOPES,
        expires_at: int | None = None,
        limits: Limits | None = None,
    ) -> tuple[KeyRecord, str]:
        record = KeyRecord(
            project=account.project,
            name=name,
            created_at=int(time.time()),
            scopes=scopes,
            service_account=account.id,
            expires_at=expires_at,
            limits=limits or Limits(),
        )
        key, value = await self._keys.create(record)
        _log.info("api_key.created", project=account.project, key_id=key.id, scopes=scopes)
        return key, value

    async def _shown(self, project: ProjectRecord, records: Sequence[KeyRecord]) -> list[wire.ProjectKey]:
        """Complete keys with their owners and times of use; those whose owner is gone are gone, too."""
        owners = await self._accounts.many([record.service_account or "" for record in records])
        used = await self._keys.last_used([record.id for record in records])
        return [
            views.project_key(record, owners[record.service_account].owner(), project, used.get(record.id))
            for record in records
            if record.service_account in owners
        ]


def _new_account(account: ServiceAccountRecord, key: wire.NewKey | None) -> wire.NewServiceAccount:
    return wire.NewServiceAccount(
        id=account.id, name=account.name, role=account.role, created_at=account.created_at, api_key=key
    )


def _granted(given: Sequence[GivenScope] | None) -> tuple[Scope, ...]:
    """Return the scopes in a fixed order; none means the usual ones."""
    named = {"read" if scope == "api.all.read" else scope for scope in given or USUAL_SCOPES}
    return tuple(scope for scope in ALL_SCOPES if scope in named)


def check_current(key: KeyRecord) -> None:
    """Raises InvalidRequest for a key that has expired."""
    if key.expired(time.time()):
        raise InvalidRequest(f"The API key {key.id} has expired; create another one.", param="key_id")


def from_now(seconds: int | None) -> int | None:
    """Return the Unix time that is so many seconds away."""
    return None if seconds is None else int(time.time()) + seconds


def _check_future(expires_at: int | None) -> None:
    if expires_at is not None and expires_at <= time.time():
        raise InvalidRequest(
            f"'selftune.expires_at' is {expires_at}, which has passed; it is Unix time in seconds.",
            code="invalid_value",
            param="selftune.expires_at",
        )
