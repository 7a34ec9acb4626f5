"""/v1/organization/admin_api_keys"""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from litestar import Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from services.api.bodies import decode, read_json
from services.api.documents import json_body
from services.api.listing import page
from services.api.organization.admin_keys import AdminKeys
from shared.schemas.organization import AdminKey, CreateAdminKey, NewAdminKey, Removed, RotateKey
from shared.schemas.paging import Page
from shared.settings import Settings

_CREATE_ADMIN = msgspec.json.Decoder(CreateAdminKey)
_ROTATE = msgspec.json.Decoder(RotateKey)

_ADMIN_KEYS = "/v1/organization/admin_api_keys"

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=100)]


@post(_ADMIN_KEYS, status_code=200, operation_id="createAdminApiKey", opt={"request_body": json_body("CreateAdminKey")})
async def create_admin_key(
    request: Request[Any, Any, Any], settings: NamedDependency[Settings], admin_keys: NamedDependency[AdminKeys]
) -> NewAdminKey:
    """Create a key that administers the organization and does nothing else; its value is shown this once."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _CREATE_ADMIN)
    return await admin_keys.create(wanted)


@get(_ADMIN_KEYS, operation_id="listAdminApiKeys")
async def list_admin_keys(
    admin_keys: NamedDependency[AdminKeys],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
    order: FromQuery[Literal["asc", "desc"]] = "asc",
) -> Page[AdminKey]:
    """List admin keys, oldest first unless `order` is `desc`."""
    shown, more = await admin_keys.keys(after=after or None, limit=limit, newest_first=order == "desc")
    return page(shown, has_more=more)


@get(_ADMIN_KEYS + "/{key_id:str}", operation_id="retrieveAdminApiKey")
async def retrieve_admin_key(key_id: FromPath[str], admin_keys: NamedDependency[AdminKeys]) -> AdminKey:
    """Look an admin key up."""
    return await admin_keys.key(key_id)


@post(
    _ADMIN_KEYS + "/{key_id:str}/rotate",
    status_code=200,
    operation_id="rotateAdminApiKey",
    opt={"request_body": json_body("RotateKey")},
)
async def rotate_admin_key(
    key_id: FromPath[str],
    request: Request[Any, Any, Any],
    settings: NamedDependency[Settings],
    admin_keys: NamedDependency[AdminKeys],
) -> NewAdminKey:
    """Give an admin key another value, shown this once; the former one works for `grace_s` more seconds."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _ROTATE)
    return await admin_keys.rotate(key_id, wanted)


@delete(_ADMIN_KEYS + "/{key_id:str}", status_code=200, operation_id="deleteAdminApiKey")
async def delete_admin_key(key_id: FromPath[str], admin_keys: NamedDependency[AdminKeys]) -> Removed:
    """Revoke an admin key; it stops working at once. The server's own cannot be."""
    await admin_keys.revoke(key_id)
    return Removed(id=key_id, object="organization.admin_api_key.deleted")


ROUTES = [create_admin_key, list_admin_keys, retrieve_admin_key, rotate_admin_key, delete_admin_key]
