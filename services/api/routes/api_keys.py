"""/v1/organization/projects/{project}/api_keys."""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from litestar import Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from services.api.bodies import decode, read_json
from services.api.documents import json_body
from services.api.listing import page
from services.api.organization.keys import KeyAdmin
from shared.schemas.organization import (
    CreateProjectKey,
    NewProjectKey,
    ProjectKey,
    Removed,
    RotateKey,
    UpdateKey,
)
from shared.schemas.paging import Page
from shared.settings import Settings

_CREATE = msgspec.json.Decoder(CreateProjectKey)
_UPDATE = msgspec.json.Decoder(UpdateKey)
_ROTATE = msgspec.json.Decoder(RotateKey)

_PROJECT_KEYS = "/v1/organization/projects/{project_id:str}/api_keys"

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
    key_admin: NamedDependency[KeyAdmin],
) -> NewProjectKey:
    """Create a key with scopes and limits of its own; its value is shown this once."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _CREATE)
    return await key_admin.create_key(project_id, wanted)


@get(_PROJECT_KEYS, operation_id="listProjectApiKeys")
async def list_keys(
    project_id: FromPath[str],
    key_admin: NamedDependency[KeyAdmin],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
    owner_project_access: FromQuery[Literal["active", "inactive", "any"]] = "any",
) -> Page[ProjectKey]:
    """List a project's keys, newest first; those of an archived project are `inactive`."""
    shown, more = await key_admin.keys(project_id, after=after or None, limit=limit)
    if shown and owner_project_access not in ("any", shown[0].owner_project_access):
        return page([], has_more=False)
    return page(shown, has_more=more)


@get(_PROJECT_KEYS + "/{key_id:str}", operation_id="retrieveProjectApiKey")
async def retrieve_key(
    project_id: FromPath[str], key_id: FromPath[str], key_admin: NamedDependency[KeyAdmin]
) -> ProjectKey:
    """Look a key up."""
    return await key_admin.key(project_id, key_id)


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
    key_admin: NamedDependency[KeyAdmin],
) -> ProjectKey:
    """Change a key's scopes, limits or expiry."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _UPDATE)
    return await key_admin.update_key(project_id, key_id, wanted)


@post(
    _PROJECT_KEYS + "/{key_id:str}/rotate",
    status_code=200,
    operation_id="rotateProjectApiKey",
    opt={"request_body": json_body("RotateKey")},
)
async def rotate_key(
    project_id: FromPath[str],
    key_id: FromPath[str],
    request: Request[Any, Any, Any],
    settings: NamedDependency[Settings],
    key_admin: NamedDependency[KeyAdmin],
) -> NewProjectKey:
    """Give a key another value, shown this once; the former one works for `grace_s` more seconds."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _ROTATE)
    return await key_admin.rotate_key(project_id, key_id, wanted)


@delete(_PROJECT_KEYS + "/{key_id:str}", status_code=200, operation_id="deleteProjectApiKey")
async def delete_key(project_id: FromPath[str], key_id: FromPath[str], key_admin: NamedDependency[KeyAdmin]) -> Removed:
    """Revoke a key; it stops working at once."""
    await key_admin.revoke_key(project_id, key_id)
    return Removed(id=key_id, object="organization.project.api_key.deleted")


ROUTES = [create_key, list_keys, retrieve_key, update_key, rotate_key, delete_key]
