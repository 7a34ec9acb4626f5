"""/v1/organization/projects and their rate limits. A project is never deleted, only archived."""

from typing import Annotated, Any, TypeAlias

import msgspec
from litestar import Request, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from services.api.bodies import decode, read_json
from services.api.documents import json_body
from services.api.listing import page
from services.api.organization.projects import ProjectAdmin
from shared.schemas.organization import CreateProject, Project, RateLimit, UpdateProject, UpdateRateLimit
from shared.schemas.paging import Page
from shared.settings import Settings

_CREATE = msgspec.json.Decoder(CreateProject)
_UPDATE = msgspec.json.Decoder(UpdateProject)
_UPDATE_LIMIT = msgspec.json.Decoder(UpdateRateLimit)

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=100)]


@post(
    "/v1/organization/projects",
    status_code=200,
    operation_id="createProject",
    opt={"request_body": json_body("CreateProject")},
)
async def create_project(
    request: Request[Any, Any, Any], settings: NamedDependency[Settings], project_admin: NamedDependency[ProjectAdmin]
) -> Project:
    """Create a project."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _CREATE)
    return (await project_admin.create(wanted)).public()


@get("/v1/organization/projects", operation_id="listProjects")
async def list_projects(
    project_admin: NamedDependency[ProjectAdmin],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
    include_archived: FromQuery[bool] = False,
) -> Page[Project]:
    """List projects, newest first."""
    records, more = await project_admin.list(after=after or None, limit=limit, include_archived=include_archived)
    return page([record.public() for record in records], has_more=more)


@get("/v1/organization/projects/{project_id:str}", operation_id="retrieveProject")
async def retrieve_project(project_id: FromPath[str], project_admin: NamedDependency[ProjectAdmin]) -> Project:
    """Look a project up."""
    return (await project_admin.get(project_id)).public()


@post(
    "/v1/organization/projects/{project_id:str}",
    status_code=200,
    operation_id="modifyProject",
    opt={"request_body": json_body("UpdateProject")},
)
async def modify_project(
    project_id: FromPath[str],
    request: Request[Any, Any, Any],
    settings: NamedDependency[Settings],
    project_admin: NamedDependency[ProjectAdmin],
) -> Project:
    """Rename a project or change its limits."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _UPDATE)
    return (await project_admin.update(project_id, wanted)).public()


@post("/v1/organization/projects/{project_id:str}/archive", status_code=200, operation_id="archiveProject")
async def archive_project(project_id: FromPath[str], project_admin: NamedDependency[ProjectAdmin]) -> Project:
    """Archive a project: its keys stop working, its data stay."""
    return (await project_admin.archive(project_id)).public()


@get("/v1/organization/projects/{project_id:str}/rate_limits", operation_id="listProjectRateLimits")
async def list_rate_limits(
    project_id: FromPath[str],
    project_admin: NamedDependency[ProjectAdmin],
    limit: Limit = 100,
    after: FromQuery[str | None] = None,
    before: FromQuery[str | None] = None,
) -> Page[RateLimit]:
    """List a project's rate limits: one, for all models together."""
    only = await project_admin.rate_limit(project_id)
    return page([] if only.id in (after, before) else [only], has_more=False)


@post(
    "/v1/organization/projects/{project_id:str}/rate_limits/{rate_limit_id:str}",
    status_code=200,
    operation_id="updateProjectRateLimits",
    opt={"request_body": json_body("UpdateRateLimit")},
)
async def update_rate_limit(
    project_id: FromPath[str],
    rate_limit_id: FromPath[str],
    request: Request[Any, Any, Any],
    settings: NamedDependency[Settings],
    project_admin: NamedDependency[ProjectAdmin],
) -> RateLimit:
    """Change what a project may do in a minute."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _UPDATE_LIMIT)
    return await project_admin.update_rate_limit(project_id, rate_limit_id, wanted)


ROUTES = [
    create_project, list_projects, retrieve_project, modify_project, archive_project, list_rate_limits,
    update_rate_limit,
]  # fmt: skip
