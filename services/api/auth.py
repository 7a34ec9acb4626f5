"""The key guard: who is it, for which project, may they, and how often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.handlers import BaseRouteHandler
from msgspec.structs import replace

from services.api import scopes
from services.api.limits import take_request
from shared import ids
from shared.errors import NotAuthenticated, StoreUnavailable
from shared.paths import Paths, read_or_create_secret
from shared.projects import Limits
from shared.settings import Settings
from shared.store.api_keys import Identity, KeyStore
from shared.store.projects import ProjectStore

_log = structlog.get_logger()

PUBLIC = "public"
"""Handler option: no key is needed."""

KEY_HEADER = "key_header"
"""Handler option: a header that may hold the key alone, instead of `Authorization: Bearer`."""


class Authenticator:
    """Knows keys, and sees to it that the first of them, the admin key, and its project are in the database."""

    def __init__(self, keys: KeyStore, projects: ProjectStore, paths: Paths, settings: Settings) -> None:
        self._keys = keys
        self._projects = projects
        self._organization = settings.organization
        self._refuse_foreign_ids = settings.refuse_foreign_ids
        self._default_limits = Limits(
            requests_per_minute=settings.project_requests_per_minute,
            tokens_per_minute=settings.project_tokens_per_minute,
            concurrent_jobs=settings.project_concurrent_jobs,
            storage_bytes=settings.project_storage_bytes,
        )
        self._admin_key, created = read_or_create_secret(paths.admin_key, ids.new_api_key())
        self._admin_stored = False
        if created:
            _log.info("admin_key.created", path=str(paths.admin_key))

    async def start(self) -> None:
        """Store the admin key if the database answers; if not, the first request that finds it does."""
        try:
            await self._store_admin_key()
        except StoreUnavailable:
            _log.warning("admin_key.pending", reason="the database does not answer")

    async def authenticate(self, authorization: str | None, headers: Mapping[str, str]) -> Identity:
        """Return who sends this Authorization header and, among `headers`, the names of an organization and a project.

        The project's limits are those that hold, 0 or None for no limit. Raises NotAuthenticated, StoreUnavailable.
        """
        key = _bearer(authorization)
        await self._store_admin_key()
        named_project = headers.get("openai-project", "").strip()
        identity = await self._keys.authenticate(key, named_project=named_project)
        self._check_organization(headers.get("openai-organization", "").strip())
        self._check_project(named_project, identity)
        project = replace(identity.project, limits=identity.project.limits.over(self._default_limits))
        return replace(identity, project=project)

    def _check_organization(self, named: str) -> None:
        if not named or not self._refuse_foreign_ids or named in (self._organization, f"org-{self._organization}"):
            return
        raise NotAuthenticated(
            f"The OpenAI-Organization header must name this server's organization, org-{self._organization}; "
            "leave it out.",
            code="mismatched_organization",
        )

    def _check_project(self, named: str, identity: Identity) -> None:
        """Refuse a header that names another project of this server: the request would be done in the wrong one.

        An id that is unknown here comes from an environment that still holds OpenAI's, and means nothing.
        """
        foreign = bool(named) and named != identity.project.id
        if foreign and (identity.names_other_project or self._refuse_foreign_ids):
            raise NotAuthenticated(
                f"The OpenAI-Project header must name the API key's project, {identity.project.id}; "
                "leave it out, or use a key of the other project.",
                code="mismatched_project",
            )

    async def _store_admin_key(self) -> None:
        if not self._admin_stored:
            await self._projects.ensure_default()
            await self._keys.ensure(self._admin_key, name="admin")
            self._admin_stored = True


def _bearer(header: str | None) -> str:
    scheme, _, key = (header or "").strip().partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise NotAuthenticated(
            "You didn't provide an API key. Send it in an Authorization header, as in 'Authorization: Bearer YOUR_KEY'."
        )
    return key.strip()


async def require_key(connection: ASGIConnection[Any, Any, Identity, State], handler: BaseRouteHandler) -> None:
    """Guard of every route that is not public; puts the caller's Identity into `connection.auth`.

    Raises NotAuthenticated, PermissionDenied, RateLimited, StoreUnavailable, SchemaTooNew.
    """
    if handler.opt.get(PUBLIC):
        return
    services = connection.app.state.services
    await services.database.ready()
    authenticator: Authenticator = services.authenticator
    caller = await authenticator.authenticate(credentials(connection, handler), connection.headers)
    connection.scope["auth"] = caller
    # Before the scopes, so that guessing at them is bounded, too.
    await take_request(connection, services.limits, caller)
    scopes.check(caller.key.scopes, str(connection.scope.get("method", "")), connection.scope["path_template"])


def credentials(connection: ASGIConnection[Any, Any, Identity, State], handler: BaseRouteHandler) -> str | None:
    """Return the Authorization header, or what stands for it in the header that the route names."""
    other = handler.opt.get(KEY_HEADER)
    key = connection.headers.get(other) if other else None
    return connection.headers.get("authorization") or (f"Bearer {key}" if key else None)
