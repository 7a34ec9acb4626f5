"""/v1/fine_tuning/checkpoints/{model}/permissions: sharing a fine-tuned model with other projects."""

from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from services.api.bodies import decode, read_json
from services.api.documents import json_body
from services.api.listing import page
from services.api.model_paths import model_id
from services.api.organization.projects import ProjectAdmin
from shared.model_records import Access
from shared.records import AdapterRecord, KeyRecord
from shared.schemas.checkpoints import CheckpointPermission, GrantPermissions
from shared.schemas.paging import Deleted, Page
from shared.settings import Settings
from shared.store.permissions import PermissionStore
from shared.store.registry import Registry

_GRANT = msgspec.json.Decoder(GrantPermissions)


@post(
    "/v1/fine_tuning/checkpoints/{model:str}/permissions",
    status_code=200,
    operation_id="createFineTuningCheckpointPermission",
    opt={"request_body": json_body("GrantPermissions")},
)
async def create_permissions(
    request: Request[Any, Any, Any],
    model: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    registry: NamedDependency[Registry],
    permissions: NamedDependency[PermissionStore],
    project_admin: NamedDependency[ProjectAdmin],
) -> Page[CheckpointPermission]:
    """Let other projects list, use and go on training a model of this project."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _GRANT)
    adapter = await _own(registry, model, caller.access)
    for project_id in wanted.project_ids:
        await project_admin.get(project_id)
    granted = await permissions.grant(adapter.name, wanted.project_ids)
    return page([record.public() for record in granted], has_more=False)


@get("/v1/fine_tuning/checkpoints/{model:str}/permissions", operation_id="listFineTuningCheckpointPermissions")
async def list_permissions(
    model: FromPath[str],
    caller: NamedDependency[KeyRecord],
    registry: NamedDependency[Registry],
    permissions: NamedDependency[PermissionStore],
    project_id: FromQuery[str | None] = None,
    after: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=100)] = 10,
    order: FromQuery[Literal["ascending", "descending"]] = "descending",
) -> Page[CheckpointPermission]:
    """List which projects may use a model, newest first unless `order` is `ascending`."""
    adapter = await _own(registry, model, caller.access)
    records, more = await permissions.page(
        adapter.name,
        project=project_id or None,
        after=after or None,
        limit=limit,
        newest_first=order == "descending",
    )
    return page([record.public() for record in records], has_more=more)


@delete(
    "/v1/fine_tuning/checkpoints/{model:str}/permissions/{permission_id:str}",
    status_code=200,
    operation_id="deleteFineTuningCheckpointPermission",
)
async def delete_permission(
    model: FromPath[str],
    permission_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    registry: NamedDependency[Registry],
    permissions: NamedDependency[PermissionStore],
) -> Deleted:
    """Take a permission back; the project's next request with the model is refused."""
    adapter = await _own(registry, model, caller.access)
    await permissions.revoke(adapter.name, permission_id)
    return Deleted(id=permission_id, object="checkpoint.permission")


async def _own(registry: Registry, segment: str, access: Access) -> AdapterRecord:
    return await registry.owned(model_id(segment), access)


ROUTES = [create_permissions, list_permissions, delete_permission]
