"""/v1/organization/audit_logs: who did what."""

from typing import Annotated, Any, TypeAlias

from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromQuery, QueryParameter

from services.api.audit.listing import FILTERS, listed
from services.api.documents import OBJECT_PAGE
from shared.store.audit import AuditStore
from shared.store.projects import ProjectStore

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=100)]


@get(
    "/v1/organization/audit_logs",
    operation_id="listAuditLogs",
    opt={"query": FILTERS, "response_body": OBJECT_PAGE},
)
async def list_audit_logs(
    request: Request[Any, Any, Any],
    audit_store: NamedDependency[AuditStore],
    projects: NamedDependency[ProjectStore],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
    before: FromQuery[str | None] = None,
) -> Response[dict[str, Any]]:
    """List who changed what, newest first; filters that are given several times want one of their values."""
    shown = await listed(
        audit_store, projects, request.query_params, limit=limit, after=after or None, before=before or None
    )
    return Response(shown)


ROUTES = [list_audit_logs]
