"""Keys as the organization API shows them."""

from __future__ import annotations

from shared.projects import ProjectRecord, ServiceAccountRecord
from shared.records import KeyRecord
from shared.schemas.organization import (
    AccountOwner,
    AdminKey,
    AdminOwner,
    KeyDetails,
    KeyOwner,
    NewAdminKey,
    NewKey,
    NewProjectKey,
    ProjectKey,
)


def project_key(
    key: KeyRecord, owner: AccountOwner, project: ProjectRecord, last_used_at: int | None = None
) -> ProjectKey:
    return ProjectKey(
        id=key.id,
        name=key.name,
        redacted_value=key.redacted,
        created_at=key.created_at,
        last_used_at=last_used_at,
        expires_at=key.expires_at,
        owner=KeyOwner(service_account=owner),
        owner_project_access="active" if project.archived_at is None else "inactive",
        selftune=KeyDetails(scopes=list(key.scopes), limits=key.limits.of_key()),
    )


def new_project_key(key: KeyRecord, value: str, account: ServiceAccountRecord, project: ProjectRecord) -> NewProjectKey:
    shown = project_key(key, account.owner(), project)
    return NewProjectKey(**{name: getattr(shown, name) for name in shown.__struct_fields__}, value=value)


def new_key(key: KeyRecord, value: str) -> NewKey:
    return NewKey(id=key.id, name=key.name, created_at=key.created_at, expires_at=key.expires_at, value=value)


def admin_key(key: KeyRecord, organization: str, last_used_at: int | None = None) -> AdminKey:
    return AdminKey(
        id=key.id,
        name=key.name,
        redacted_value=key.redacted,
        created_at=key.created_at,
        last_used_at=last_used_at,
        expires_at=key.expires_at,
        owner=AdminOwner(id=f"org-{organization}", name=organization, created_at=key.created_at),
    )


def new_admin_key(key: KeyRecord, value: str, organization: str) -> NewAdminKey:
    shown = admin_key(key, organization)
    return NewAdminKey(**{name: getattr(shown, name) for name in shown.__struct_fields__}, value=value)
