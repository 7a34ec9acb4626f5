"""The key guard: who is it, for which project, may they, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.handlers import BaseRouteHandler
from msgspec.structs import replace

from services.api import scopes
from services.api.audit import trail
from services.api.limits import take_request
from shared import ids
from shared.errors import InvalidRequest, NotAuthenticated, PermissionDenied, Unavailable
from shared.paths import Paths, folder_id, read_or_create_secret
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
        self._paths = paths
        self._folder = folder_id(paths)
        self._admin_key, created = read_or_create_secret(paths.admin_key, ids.new_api_key())
        self._admin_file = _version(paths)
        self._admin_stored = False
        if created:
            _log.info("admin_key.created", path=str(paths.admin_key))

    async def start(self) -> None:
        """Store the admin key if the database answers; if not, the first request that finds it does."""
        try:
            await self._store_admin_key()
        except Unavailable as error:
            _log.warning("admin_key.pending", reason=error.message)

    async def authenticate(self, authorization: str | None, headers: Mapping[str, str]) -> Identity:
        """Return who sends this Authorization header and, among `headers`, the names of an organization and a project.

        The project's limits are those that hold, 0 or None for no limit. Raises NotAuthenticated, StoreUnavailable,
        KeySecretMismatch.
        """
        key = _bearer(authorization)
        await self._store_admin_key()
        named_project = headers.get("openai-project", "").strip()
        identity = await self._identify(key, named_project)
        self._check_organization(headers.get("openai-organization", "").strip())
        self._check_project(named_project, identity)
        project = replace(identity.project, limits=identity.project.limits.over(self._default_limits))
        return replace(identity, project=project)

    async def _identify(self, key: str, named_project: str) -> Identity:
        """Look a key up, after another admin key where its file was replaced: an admin's is looked up twice then."""
        try:
            identity = await self._keys.authenticate(key, named_project=named_project)
            if identity.key.kind != "built_in" or not await self._admin_key_replaced():
                return identity
        except NotAuthenticated:
            if not await self._admin_key_replaced():
                raise
        return await self._keys.authenticate(key, named_project=named_project)

    async def _admin_key_replaced(self) -> bool:
        """Tell whether admin.key holds another key than before; it is stored, and the former one is refused, then."""
        version = _version(self._paths)
        if version == self._admin_file:
            return False
        try:
            key, _ = await asyncio.to_thread(read_or_create_secret, self._paths.admin_key, ids.new_api_key())
        except (OSError, InvalidRequest, UnicodeDecodeError) as error:
            _log.error("admin_key.unreadable", path=str(self._paths.admin_key), reason=str(error))
            return False
        await self._keys.ensure(key, name="admin", folder=self._folder)
        self._admin_file, self._admin_key = version, key
        _log.info("admin_key.replaced", path=str(self._paths.admin_key))
        return True

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
            await self._keys.ensure(self._admin_key, name="admin", folder=self._folder)
            self._admin_stored = True


def _version(paths: Paths) -> tuple[int, int, int] | None:
    """Return what changes when admin.key is replaced; None if it is gone."""
    try:
        found = paths.admin_key.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


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
    address, refusals = trail.address_of(connection.scope), services.refusals
    try:
        caller = await authenticator.authenticate(credentials(connection, handler), connection.headers)
    except NotAuthenticated as error:
        refusals.note(key_id=error.key_id, address=address, reason=error.code or "")
        raise
    connection.scope["auth"] = caller
    # Before the scopes, so that guessing at them is bounded, too.
    await take_request(connection, services.stores.limits, caller)
    try:
        scopes.check(caller.key.scopes, str(connection.scope.get("method", "")), connection.scope["path_template"])
    except PermissionDenied as error:
        refusals.note(key_id=caller.key.id, address=address, reason=error.code or "", project=caller.project.id)
        raise
    await trail.begin(connection, handler, services.stores.audit_store, caller)


async def is_still_let_in(connection: ASGIConnection[Any, Any, Identity, State]) -> bool:
    """Tell whether a request's key would be let in again, for answers that may last longer than the key.

    While the database does not answer nobody knows, and the answer goes on.
    """
    authenticator: Authenticator = connection.app.state.services.authenticator
    scope = connection.scope
    try:
        caller = await authenticator.authenticate(credentials(connection, scope["route_handler"]), connection.headers)
        scopes.check(caller.key.scopes, str(scope.get("method", "")), scope["path_template"])
    except (NotAuthenticated, PermissionDenied):
        return False
    except Unavailable:
        return True
    return caller.project.id == connection.auth.project.id


def credentials(connection: ASGIConnection[Any, Any, Identity, State], handler: BaseRouteHandler) -> str | None:
    """Return the Authorization header, or what stands for it in the header that the route names."""
    other = handler.opt.get(KEY_HEADER)
    key = connection.headers.get(other) if other else None
    return connection.headers.get("authorization") or (f"Bearer {key}" if key else None)
