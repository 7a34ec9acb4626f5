"""Projects and their service accounts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from shared import ids, keys
from shared.errors import NotFound
from shared.projects import Limits, ProjectRecord, ServiceAccountRecord
from shared.records import DEFAULT_PROJECT
from shared.schemas.organization import Role
from shared.store import index
from shared.store.client import Client

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ProjectRecord).decode
_decode_account = msgspec.json.Decoder(ServiceAccountRecord).decode


def without_record(project_id: str) -> ProjectRecord:
    """Stand in for a project that was there before projects had records."""
    return ProjectRecord(id=project_id, name=project_id, created_at=0)


class ProjectStore:
    """Projects, newest first."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def ensure_default(self) -> None:
        """Create the default project if it is not there."""
        record = ProjectRecord(id=DEFAULT_PROJECT, name="Default project", created_at=int(time.time()))
        await self._client.together(
            [
                ("SET", keys.project(record.id), _encode(record), "NX"),
                ("ZADD", keys.PROJECTS, "NX", 0, record.id),
            ]
        )

    async def create(self, name: str, limits: Limits) -> ProjectRecord:
        record = ProjectRecord(id=ids.new_project_id(), name=name, created_at=int(time.time()), limits=limits)
        order = await index.next_sequence(self._client)
        await self._client.together(
            [
                ("SET", keys.project(record.id), _encode(record)),
                ("ZADD", keys.PROJECTS, order, record.id),
            ]
        )
        return record

    async def get(self, project_id: str) -> ProjectRecord:
        """Raises NotFound."""
        raw = await self._client.call("GET", keys.project(project_id))
        if raw is None:
            raise _no_project(project_id)
        return _decode(raw)

    async def list(
        self, *, after: str | None, limit: int, include_archived: bool
    ) -> tuple[Sequence[ProjectRecord], bool]:
        """Return a page, newest first, and whether there are more."""

        def wanted(record: ProjectRecord) -> bool:
            return include_archived or record.archived_at is None

        return await index.records(
            self._client, keys.PROJECTS, keys.project, _decode, after=after, limit=limit, keep=wanted
        )

    async def update(self, project_id: str, change: Callable[[ProjectRecord], ProjectRecord]) -> ProjectRecord:
        """Apply `change` to the newest record. Raises NotFound."""
        changed: list[ProjectRecord] = []

        def rewrite(raw: bytes) -> bytes:
            changed[:] = [change(_decode(raw))]
            return _encode(changed[0])

        if not await index.replace(self._client, keys.project(project_id), rewrite):
            raise _no_project(project_id)
        return changed[0]


class ServiceAccountStore:
    """Service accounts of projects, newest first."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def create(self, project: str, name: str, role: Role) -> ServiceAccountRecord:
        record = ServiceAccountRecord(
            id=ids.new_service_account_id(), project=project, name=name, role=role, created_at=int(time.time())
        )
        order = await index.next_sequence(self._client)
        await self._client.together(
            [
                ("SET", keys.account(record.id), _encode(record)),
                ("ZADD", keys.accounts(project), order, record.id),
            ]
        )
        return record

    async def get(self, account_id: str, *, project: str) -> ServiceAccountRecord:
        """Raises NotFound when it is unknown or belongs to another project."""
        raw = await self._client.call("GET", keys.account(account_id))
        record = _decode_account(raw) if raw is not None else None
        if record is None or record.project != project:
            raise _no_account(account_id)
        return record

    async def many(self, account_ids: Sequence[str]) -> dict[str, ServiceAccountRecord]:
        """Return those that exist, by id."""
        raws = await self._client.call("MGET", *map(keys.account, account_ids)) if account_ids else []
        records = (_decode_account(raw) for raw in raws if raw is not None)
        return {record.id: record for record in records}

    async def list(self, project: str, *, after: str | None, limit: int) -> tuple[Sequence[ServiceAccountRecord], bool]:
        """Return a page, newest first, and whether there are more."""
        return await index.records(
            self._client, keys.accounts(project), keys.account, _decode_account, after=after, limit=limit
        )

    async def update(
        self, account_id: str, change: Callable[[ServiceAccountRecord], ServiceAccountRecord], *, project: str
    ) -> ServiceAccountRecord:
        """Apply `change` to the newest record. Raises NotFound."""
        changed = [await self.get(account_id, project=project)]

        def rewrite(raw: bytes) -> bytes:
            changed[:] = [change(_decode_account(raw))]
            return _encode(changed[0])

        if not await index.replace(self._client, keys.account(account_id), rewrite):
            raise _no_account(account_id)
        return changed[0]

    async def delete(self, account_id: str, *, project: str) -> None:
        """Delete a service account and all its keys, which stop working at once. Raises NotFound."""
        await self.get(account_id, project=project)
        places = [keys.place(listing, "") for listing in (keys.accounts(project), keys.project_keys(project))]
        deleted = await self._client.script(
            "delete_account",
            [
                keys.account(account_id),
                keys.accounts(project),
                keys.account_keys(account_id),
                keys.project_keys(project),
            ],
            [
                account_id,
                *(keys.api_key(""), keys.key_used(""), keys.former_key(""), keys.key_digest("")),
                *places,
            ],
        )
        if not deleted:
            raise _no_account(account_id)


def _no_project(project_id: str) -> NotFound:
    return NotFound(f"No such project: {project_id}", param="project_id")


def _no_account(account_id: str) -> NotFound:
    return NotFound(f"No such service account: {account_id}", param="service_account_id")
