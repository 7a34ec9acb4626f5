"""Administration: projects and their limits, service accounts, and keys."""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from services.api import organization_views as views
from shared.errors import InvalidRequest, NotFound
from shared.projects import USUAL_SCOPES, Limits, ProjectRecord, ServiceAccountRecord
from shared.records import DEFAULT_PROJECT, KeyRecord
from shared.schemas import organization as wire
from shared.schemas.organization import GivenScope, Scope
from shared.settings import Settings
from shared.store.api_keys import KeyStore
from shared.store.projects import ProjectStore, ServiceAccountStore

_log = structlog.get_logger()


class Organization:
    """What an administrator can do. Every method raises NotFound for ids that are unknown or another project's, and
    InvalidRequest for changes to what is archived."""

    def __init__(
        self, settings: Settings, projects: ProjectStore, accounts: ServiceAccountStore, keys: KeyStore
    ) -> None:
        self._name = settings.organization
        self._default_limits = Limits(
            requests_per_minute=settings.project_requests_per_minute,
            tokens_per_minute=settings.project_tokens_per_minute,
        )
        self.projects = projects
        self.accounts = accounts
        self._keys = keys

    # Projects

    async def create_project(self, wanted: wire.CreateProject) -> ProjectRecord:
        options = wanted.selftune or wire.ProjectOptions()
        record = await self.projects.create(wanted.name, Limits().changed(options.limits))
        _log.info("project.created", project=record.id)
        return record

    async def update_project(self, project_id: str, wanted: wire.UpdateProject) -> ProjectRecord:
        limits = wanted.selftune.limits if wanted.selftune else None

        def change(current: ProjectRecord) -> ProjectRecord:
            _check_active(current)
            return replace(current, name=wanted.name or current.name, limits=current.limits.changed(limits))

        return await self.projects.update(project_id, change)

    async def archive_project(self, project_id: str) -> ProjectRecord:
        """End a project for good: its keys stop working at once, its data stay. Twice is the same as once."""
        if project_id == DEFAULT_PROJECT:
            raise InvalidRequest(
                "The default project cannot be archived: the server's own admin key belongs to it.",
                code="default_project",
                param="project_id",
            )

        def change(current: ProjectRecord) -> ProjectRecord:
            return current if current.archived_at else replace(current, archived_at=int(time.time()))

        record = await self.projects.update(project_id, change)
        _log.info("project.archived", project=project_id)
        return record

    async def rate_limit(self, project_id: str) -> wire.RateLimit:
        return self._shown_limit(await self.projects.get(project_id))

    async def update_rate_limit(self, project_id: str, limit_id: str, wanted: wire.UpdateRateLimit) -> wire.RateLimit:
        """Set what a project may do in a minute; the one limit there is covers all models."""
        current = await self.rate_limit(project_id)
        if limit_id != current.id:
            raise NotFound(f"No such rate limit: {limit_id}; this project's is {current.id}.", param="rate_limit_id")
        limits = wire.ProjectLimits(
            requests_per_minute=_unset_if_none(wanted.max_requests_per_1_minute),
            tokens_per_minute=_unset_if_none(wanted.max_tokens_per_1_minute),
        )
        change = wire.UpdateProject(selftune=wire.ProjectOptions(limits=limits))
        return self._shown_limit(await self.update_project(project_id, change))

    def _shown_limit(self, project: ProjectRecord) -> wire.RateLimit:
        limits = project.limits.over(self._default_limits)
        return wire.RateLimit(
            id=f"rl-{project.id}",
            max_requests_per_1_minute=limits.requests_per_minute or 0,
            max_tokens_per_1_minute=limits.tokens_per_minute or 0,
        )

    # Service accounts

    async def create_account(self, project_id: str, wanted: wire.CreateServiceAccount) -> wire.NewServiceAccount:
        """Create a service account, and its first key unless that is not wanted."""
        _check_active(await self.projects.get(project_id))
        if wanted.create_service_account_only:
            if wanted.expires_in_seconds is not None:
                raise InvalidRequest(
                    "A service account that is created without a key has none that could expire; "
                    "leave 'expires_in_seconds' or 'create_service_account_only' out.",
                    param="expires_in_seconds",
                )
            account = await self.accounts.create(project_id, wanted.name, "none")
            return _new_account(account, None)
        account = await self.accounts.create(project_id, wanted.name, "member")
        key, value = await self._create_key(account, wanted.name, expires_at=_from_now(wanted.expires_in_seconds))
        return _new_account(account, views.new_key(key, value))

    async def update_account(
        self, project_id: str, account_id: str, wanted: wire.UpdateServiceAccount
    ) -> ServiceAccountRecord:
        _check_active(await self.projects.get(project_id))

        def change(current: ServiceAccountRecord) -> ServiceAccountRecord:
            return replace(current, name=wanted.name or current.name, role=wanted.role or current.role)

        return await self.accounts.update(account_id, change, project=project_id)

    async def delete_account(self, project_id: str, account_id: str) -> None:
        """Delete a service account and its keys."""
        await self.accounts.delete(account_id, project=project_id)
        _log.info("service_account.deleted", project=project_id, service_account=account_id)

    # Keys of projects

    async def create_account_key(
        self, project_id: str, account_id: str, wanted: wire.CreateServiceAccountKey
    ) -> wire.NewKey:
        _check_active(await self.projects.get(project_id))
        account = await self.accounts.get(account_id, project=project_id)
        key, value = await self._create_key(
            account,
            wanted.name or account.name,
            scopes=_granted(wanted.scopes),
            expires_at=_from_now(wanted.expires_in_seconds),
        )
        return views.new_key(key, value)

    async def create_key(self, project_id: str, wanted: wire.CreateProjectKey) -> wire.NewProjectKey:
        """Create a key, and the service account that owns it."""
        project = await self.projects.get(project_id)
        _check_active(project)
        options = wanted.selftune or wire.KeyOptions()
        expires_at = None if options.expires_at is UNSET else options.expires_at
        _check_future(expires_at)
        account = await self.accounts.create(project_id, wanted.name, "member")
        key, value = await self._create_key(
            account,
            wanted.name,
            scopes=_granted(options.scopes),
            expires_at=expires_at,
            limits=Limits().changed(options.limits),
        )
        return views.new_project_key(key, value, account, project)

    async def key(self, project_id: str, key_id: str) -> wire.ProjectKey:
        project = await self.projects.get(project_id)
        return (await self._shown(project, [await self._keys.get(key_id, project=project_id)]))[0]

    async def keys(self, project_id: str, *, after: str | None, limit: int) -> tuple[Sequence[wire.ProjectKey], bool]:
        project = await self.projects.get(project_id)
        records, more = await self._keys.list(project_id, after=after, limit=limit)
        return await self._shown(project, records), more

    async def update_key(self, project_id: str, key_id: str, wanted: wire.UpdateKey) -> wire.ProjectKey:
        project = await self.projects.get(project_id)
        _check_active(project)
        options = wanted.selftune or wire.KeyOptions()
        expires_at = options.expires_at if wanted.expires_in_seconds is None else _from_now(wanted.expires_in_seconds)
        _check_future(expires_at or None)
        scopes = options.scopes if wanted.scopes is None else wanted.scopes

        def change(current: KeyRecord) -> KeyRecord:
            if current.expired(time.time()):
                raise InvalidRequest(f"The API key {key_id} has expired; create another one.", param="key_id")
            return replace(
                current,
                scopes=current.scopes if scopes is None else _granted(scopes),
                expires_at=current.expires_at if expires_at is UNSET else expires_at,
                limits=current.limits.changed(options.limits),
            )

        record = await self._keys.update(key_id, change, project=project_id)
        return (await self._shown(project, [record]))[0]

    async def revoke_key(self, project_id: str, key_id: str) -> None:
        """Revoke a key; it stops working at once."""
        await self._keys.revoke(key_id, project=project_id)
        _log.info("api_key.revoked", project=project_id, key_id=key_id)

    # Keys of the organization

    async def create_admin_key(self, wanted: wire.CreateAdminKey) -> wire.NewAdminKey:
        """Create a key that administers the organization and does nothing else."""
        record = KeyRecord(
            project=DEFAULT_PROJECT,
            name=wanted.name,
            created_at=int(time.time()),
            kind="admin",
            scopes=("admin",),
            expires_at=_from_now(wanted.expires_in_seconds),
        )
        key, value = await self._keys.create(record)
        _log.info("admin_key.created", key_id=key.id)
        return views.new_admin_key(key, value, self._name)

    async def admin_key(self, key_id: str) -> wire.AdminKey:
        record = await self._keys.get(key_id, project=None)
        return views.admin_key(record, self._name, (await self._keys.last_used([key_id])).get(key_id))

    async def admin_keys(
        self, *, after: str | None, limit: int, newest_first: bool
    ) -> tuple[Sequence[wire.AdminKey], bool]:
        records, more = await self._keys.list(None, after=after, limit=limit, newest_first=newest_first)
        used = await self._keys.last_used([record.id for record in records])
        return [views.admin_key(record, self._name, used.get(record.id)) for record in records], more

    async def revoke_admin_key(self, key_id: str) -> None:
        """Revoke an admin key; the one that the data folder keeps would come back, so it is refused."""
        if (await self._keys.get(key_id, project=None)).kind == "built_in":
            raise InvalidRequest(
                f"{key_id} is the server's own admin key, kept in its data folder; it cannot be deleted over the API.",
                code="built_in_key",
                param="key_id",
            )
        await self._keys.revoke(key_id, project=None)
        _log.info("admin_key.revoked", key_id=key_id)

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
        owners = await self.accounts.many([record.service_account or "" for record in records])
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


def _check_active(project: ProjectRecord) -> None:
    if project.archived_at is not None:
        raise InvalidRequest(
            f"The project {project.id} is archived and cannot be changed.", code="project_archived", param="project_id"
        )


def _granted(given: Sequence[GivenScope] | None) -> tuple[Scope, ...]:
    """Return the scopes in a fixed order; none means the usual ones."""
    named = {"read" if scope == "api.all.read" else scope for scope in given or USUAL_SCOPES}
    order: tuple[Scope, ...] = ("read", "train", "infer", "admin")
    return tuple(scope for scope in order if scope in named)


def _from_now(seconds: int | None) -> int | None:
    return None if seconds is None else int(time.time()) + seconds


def _check_future(expires_at: int | None) -> None:
    if expires_at is not None and expires_at <= time.time():
        raise InvalidRequest(
            f"'selftune.expires_at' is {expires_at}, which has passed; it is Unix time in seconds.",
            code="invalid_value",
            param="selftune.expires_at",
        )


def _unset_if_none(value: int | None) -> int | UnsetType:
    return UNSET if value is None else value
