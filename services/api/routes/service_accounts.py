"""/v1/organization/projects/{project}/service_accounts: who owns a project's keys."""

from typing import Annotated, Any, TypeAlias

import msgspec
from litestar import Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from services.api.bodies import decode, read_json
from services.api.documents import json_body
from services.api.listing import page
from services.api.organization.keys import KeyAdmin
from shared.schemas.organization import (
    CreateServiceAccount,
    CreateServiceAccountKey,
    NewKey,
    NewServiceAccount,
    Removed,
    ServiceAccount,
    UpdateServiceAccount,
)
from shared.schemas.paging import Page
from shared.settings import Settings

_CREATE = msgspec.json.Decoder(CreateServiceAccount)
_UPDATE = msgspec.json.Decoder(UpdateServiceAccount)
_CREATE_KEY = msgspec.json.Decoder(CreateServiceAccountKey)

_ALL = "/v1/organization/projects/{project_id:str}/service_accounts"
_ONE = _ALL + "/{service_account_id:str}"

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=100)]


@post(
    _ALL,
    status_code=200,
    operation_id="createProjectServiceAccount",
    opt={"request_body": json_body("CreateServiceAccount")},
)
async def create_service_account(
    project_id: FromPath[str],
    request: Request[Any, Any, Any],
    settings: NamedDependency[Settings],
    key_admin: NamedDependency[KeyAdmin],
) -> NewServiceAccount:
    """Create a service account with a key, whose value is shown this once."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _CREATE)
    return await key_admin.create_account(project_id, wanted)


@get(_ALL, operation_id="listProjectServiceAccounts")
async def list_service_accounts(
    project_id: FromPath[str],
    key_admin: NamedDependency[KeyAdmin],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
) -> Page[ServiceAccount]:
    """List a project's service accounts, newest first."""
    records, more = await key_admin.accounts(project_id, after=after or None, limit=limit)
    return page([record.public() for record in records], has_more=more)


@get(_ONE, operation_id="retrieveProjectServiceAccount")
async def retrieve_service_account(
    project_id: FromPath[str], service_account_id: FromPath[str], key_admin: NamedDependency[KeyAdmin]
) -> ServiceAccount:
    """Look a service account up."""
    return (await key_admin.account(project_id, service_account_id)).public()


@post(
    _ONE,
    status_code=200,
    operation_id="updateProjectServiceAccount",
    opt={"request_body": json_body("UpdateServiceAccount")},
)
async def update_service_account(
    project_id: FromPath[str],
    service_account_id: FromPath[str],
    request: Request[Any, Any, Any],
    settings: NamedDependency[Settings],
    key_admin: NamedDependency[KeyAdmin],
) -> ServiceAccount:
    """Change a service account's name or role."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _UPDATE)
    return (await key_admin.update_account(project_id, service_account_id, wanted)).public()


@delete(_ONE, status_code=200, operation_id="deleteProjectServiceAccount")
async def delete_service_account(
    project_id: FromPath[str], service_account_id: FromPath[str], key_admin: NamedDependency[KeyAdmin]
) -> Removed:
    """Delete a service account and all its keys, which stop working at once."""
    await key_admin.delete_account(project_id, service_account_id)
    return Removed(id=service_account_id, object="organization.project.service_account.deleted")


@post(
    _ONE + "/api_keys",
    status_code=200,
    operation_id="createProjectServiceAccountApiKey",
    opt={"request_body": json_body("CreateServiceAccountKey")},
)
async def create_service_account_key(
    project_id: FromPath[str],
    service_account_id: FromPath[str],
    request: Request[Any, Any, Any],
    settings: NamedDependency[Settings],
    key_admin: NamedDependency[KeyAdmin],
) -> NewKey:
    """Create another key of a service account; its value is shown this once."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _CREATE_KEY)
    return await key_admin.create_account_key(project_id, service_account_id, wanted)


ROUTES = [
    create_service_account, list_service_accounts, retrieve_service_account, update_service_account,
    delete_service_account, create_service_account_key,
]  # fmt: skip
