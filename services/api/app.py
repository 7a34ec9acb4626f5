"""The application: routes, providers, error handlers and the life of its connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar
from litestar.exceptions import HTTPException

from services.api import errors, metrics
from services.api.auth import require_key
from services.api.deps import Services, providers
from services.api.headers import cors
from services.api.openapi import serve_document
from services.api.routes import ROUTES
from services.api.state_metrics import StateMetrics
from shared import tracing
from shared.errors import SelftuneError
from shared.settings import Settings


def create_app(settings: Settings, *, drain: asyncio.Event | None = None) -> Litestar:
    """Build the app; nothing is opened before its lifespan starts. `drain` is set when the server is to stop."""

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        services = Services.open(settings, drain or asyncio.Event())
        app.state.services = services
        state = StateMetrics(services.core.client, services.core.paths.home, lease_ttl_s=settings.lease_ttl_s)
        metrics.REGISTRY.register(state)
        try:
            await services.start()
            yield
        finally:
            metrics.REGISTRY.unregister(state)
            await services.close()
            await asyncio.to_thread(tracing.flush)

    return Litestar(
        route_handlers=[*ROUTES, serve_document],
        lifespan=[lifespan],
        dependencies=providers(),
        guards=[require_key],
        exception_handlers={
            SelftuneError: errors.on_our_error,
            errors.UpstreamError: errors.on_upstream_error,
            HTTPException: errors.on_http_exception,
            Exception: errors.on_unexpected,
        },
        openapi_config=None,
        logging_config=None,
        request_max_body_size=settings.max_body_bytes,
        cors_config=cors(settings.cors_origins),
    )
