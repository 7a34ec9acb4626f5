"""/healthz and /readyz, for supervisors; no key needed."""

from litestar import Response, get
from litestar.di import NamedDependency

from services.api.auth import PUBLIC
from services.api.documents import NOT_READY
from services.api.readiness import Health, Readiness, Report


@get("/healthz", operation_id="health", opt={PUBLIC: True})
async def health() -> Health:
    """Tell that the process lives."""
    return Health()


@get("/readyz", operation_id="readiness", opt={PUBLIC: True, "more_responses": {"503": NOT_READY}})
async def readiness(readiness: NamedDependency[Readiness]) -> Response[Report]:
    """Tell part by part whether the stack can do its job; 503 until all of it can."""
    report = await readiness.report()
    return Response(report, status_code=200 if report.status == "ready" else 503)


ROUTES = [health, readiness]
