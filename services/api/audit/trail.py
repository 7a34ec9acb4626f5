"""One request's entry in the audit log: noted before the handler runs, entered before its answer goes out."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import unquote

import msgspec
import structlog
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.types import Scope
from msgspec import Struct
from msgspec.structs import replace

from services.api.audit.events import EVENTS
from shared.audit_records import AuditRecord, Outcome
from shared.errors import Unavailable
from shared.store.api_keys import Identity
from shared.store.audit import AuditStore

_log = structlog.get_logger()

_STATE = "audit"
_ID_CHARS = 300
"""Model names are the longest ids."""


class _Made(Struct):
    id: str = ""


_decode_made = msgspec.json.Decoder(_Made).decode


class Trail:
    """What is to be entered of one request."""

    def __init__(self, store: AuditStore, token: str, record: AuditRecord) -> None:
        self._store = store
        self._token = token
        self._record = record
        self._told: tuple[Outcome | None] | None = None

    def tell(self, outcome: Outcome | None) -> None:
        """Say what came of it, where the answer's status does not; None if nothing was changed."""
        self._told = (outcome,)

    async def end(self, status: int | None, body: bytes = b"") -> None:
        """Enter the outcome: that of an answer with `status`, or of one that never came. A refusal changed nothing."""
        outcome = _outcome(status) if self._told is None else self._told[0]
        entered = (
            None
            if outcome is None
            else replace(
                self._record, outcome=outcome, status=status, resources=_with_made(self._record.resources, body)
            )
        )
        try:
            await self._store.end(self._token, entered)
        except Unavailable as error:  # it stays pending, and is entered later
            _log.warning("audit.pending", reason=error.message)
        if entered is not None:
            _note(entered)


async def begin(
    connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler, store: AuditStore, caller: Identity
) -> None:
    """Note a request that is about to change something. Raises StoreUnavailable, before anything is changed."""
    operation = handler.operation_id if isinstance(handler, HTTPRouteHandler) else None
    event = EVENTS.get(str(operation))
    if event is None:
        return
    path = {name: unquote(str(value))[:_ID_CHARS] for name, value in connection.path_params.items()}
    state = connection.scope["state"]
    record = AuditRecord(
        type=event,
        operation=str(operation),
        at=time.time(),
        project=path.get("project_id", "" if "/organization/" in connection.scope["path"] else caller.project.id),
        key_id=caller.key.id,
        service_account=caller.key.service_account or "",
        address=address_of(connection.scope),
        request_id=str(state.get("request_id", "")),
        resources=tuple(path.values()),
    )
    state[_STATE] = Trail(store, await store.begin(record), record)


async def settle(store: AuditStore) -> None:
    """Enter changes whose end never came. Raises StoreUnavailable."""
    for record in await store.settle():
        _note(record)


def tell(state: dict[str, Any], outcome: Outcome | None) -> None:
    """Say what came of a request, as Trail.tell does, if it has a trail."""
    trail: Trail | None = state.get(_STATE)
    if trail is not None:
        trail.tell(outcome)


def take(state: dict[str, Any]) -> Trail | None:
    """Return a request's trail if it has one, once."""
    trail: Trail | None = state.pop(_STATE, None)
    return trail


def is_recorded(state: dict[str, Any]) -> bool:
    return _STATE in state


def address_of(scope: Scope) -> str:
    """Return the address that a request came from."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def _note(record: AuditRecord) -> None:
    _log.info("audit.entered", **{name: value for name, value in msgspec.structs.asdict(record).items() if value})


def _outcome(status: int | None) -> Outcome | None:
    if status is None or status >= 500:
        return "unknown"
    return "success" if status < 400 else None


def _with_made(resources: tuple[str, ...], body: bytes) -> tuple[str, ...]:
    """Add the id in an answer, if it tells of something else than the path does."""
    try:
        made = _decode_made(body).id[:_ID_CHARS]
    except msgspec.MsgspecError:
        return resources
    return resources if not made or made in resources else (*resources, made)
