"""/v1/organization/projects/{project}/api_keys and /v1/organization/admin_api_keys."""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from litestar import Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from services.api.bodies import decode, read_json
from services.api.documents import json_body
from services.api.listing import page
from services.api.organization import Organization
from shared.schemas.organization import (
    AdminKey,
    CreateAdminKey,
    CreateProjectKey,
    NewAdminKey,
    NewProjectKey,
    ProjectKey,
    Removed,
    UpdateKey,
)
from shared.schemas.paging import Page
from shared.settings import Settings

_CREATE = msgspec.json.Decoder(CreateProjectKey)
_UPDATE = msgspec.json.Decoder(UpdateKey)
_CREATE_ADMIN = msgspec.json.Decoder(CreateAdminKey)

_PROJECT_KEYS = "/v1/organization/projects/{project_id:str}/api_keys"
_ADMIN_KEYS = "/v1/organization/admin_api_keys"

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=100)]


@post(
    _PROJECT_KEYS,
    status_code=200,
    operation_id="createProjectApiKey",
    opt={"request_body": json_body("CreateProjectKey")},
)
async def create_key(
    project_id: FromPath[str],
    request: Request[Any, Any, Any],
    settings: NamedDependency[Settings],
    organization: NamedDependency[Organization],
) -> NewProjectKey:
    """Create a key with scopes and limits of its own; its value is shown this once."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _CREATE)
    return await organization.create_key(project_id, wanted)


@get(_PROJECT_KEYS, operation_id="listProjectApiKeys")
async def list_keys(
    project_id: FromPath[str],
    organization: NamedDependency[Organization],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
    owner_project_access: FromQuery[Literal["active", "inactive", "any"]] = "any",
) -> Page[ProjectKey]:
    """List a project's keys, newest first; those of an archived project are `inactive`."""
    shown, more = await organization.keys(project_id, after=after or None, limit=limit)
    if shown and owner_project_access not in ("any", shown[0].owner_project_access):
        return page([], has_more=False)
    return page(shown, has_more=more)


@get(_PROJECT_KEYS + "/{key_id:str}", operation_id="retrieveProjectApiKey")
async def retrieve_key(
    project_id: FromPath[str], key_id: FromPath[str], organization: NamedDependency[Organization]
) -> ProjectKey:
    """Look a key up."""
    return await organization.key(project_id, key_id)


@post(
    _PROJECT_KEYS + "/{key_id:str}",
    status_code=200,
    operation_id="updateProjectApiKey",
    opt={"request_body": json_body("UpdateKey")},
)
async def update_key(
    project_id: FromPath[str],
    key_id: FromPath[str],
    request: Request[Any, Any, Any],
    settings: NamedDependency[Settings],
    organization: NamedDependency[Organization],
) -> ProjectKey:
    """Change a key's scopes, limits or expiry."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _UPDATE)
    return await organization.update_key(project_id, key_id, wanted)


@delete(_PROJECT_KEYS + "/{key_id:str}", status_code=200, operation_id="deleteProjectApiKey")
async def delete_key(
    project_id: FromPath[str], key_id: FromPath[str], organization: NamedDependency[Organization]
) -> Removed:
    """Revoke a key; it stops working at once."""
    await organization.revoke_key(project_id, key_id)
    return Removed(id=key_id, object="organization.project.api_key.deleted")


@post(_ADMIN_KEYS, status_code=200, operation_id="createAdminApiKey", opt={"request_body": json_body("CreateAdminKey")})
async def create_admin_key(
    request: Request[Any, Any, Any], settings: NamedDependency[Settings], organization: NamedDependency[Organization]
) -> NewAdminKey:
    """Create a key that administers the organization and does nothing else; its value is shown this once."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _CREATE_ADMIN)
    return await organization.create_admin_key(wanted)


@get(_ADMIN_KEYS, operation_id="listAdminApiKeys")
async def list_admin_keys(
    organization: NamedDependency[Organization],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
    order: FromQuery[Literal["asc", "desc"]] = "asc",
) -> Page[AdminKey]:
    """List admin keys, oldest first unless `order` is `desc`."""
    shown, more = await organization.admin_keys(after=after or None, limit=limit, newest_first=order == "desc")
    return page(shown, has_more=more)


@get(_ADMIN_KEYS + "/{key_id:str}", operation_id="retrieveAdminApiKey")
async def retrieve_admin_key(key_id: FromPath[str], organization: NamedDependency[Organization]) -> AdminKey:
    """Look an admin key up."""
    return await organization.admin_key(key_id)


@delete(_ADMIN_KEYS + "/{key_id:str}", status_code=200, operation_id="deleteAdminApiKey")
async def delete_admin_key(key_id: FromPath[str], organization: NamedDependency[Organization]) -> Removed:
    """Revoke an admin key; it stops working at once. The server's own cannot be."""
    await organization.revoke_admin_key(key_id)
    return Removed(id=key_id, object="organization.admin_api_key.deleted")


ROUTES = [
    create_key, list_keys, retrieve_key, update_key, delete_key, create_admin_key, list_admin_keys, retrieve_admin_key,
    delete_admin_key,
]  # fmt: skip
