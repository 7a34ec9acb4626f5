"""The Idempotency-Key header: creating with the same key and body gives the same object.

After the draft "The Idempotency-Key HTTP Header Field" (draft-ietf-httpapi-idempotency-key-header).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from litestar.connection import Request

from services.api.audit import trail
from shared.errors import InvalidRequest, NotFound
from shared.store.idempotency import IdempotencyStore

_MAX_CHARS = 255


async def object_id_for(
    request: Request[Any, Any, Any],
    store: IdempotencyStore,
    *,
    project: str,
    kind: str,
    body: bytes,
    new_id: str,
    look: Callable[[str], Awaitable[object]],
) -> str:
    """Return the id to create an object with: `new_id`, or the one that the request's key stands for already.

    `body` is a valid JSON document; its spelling does not count. `look` finds an object by its id, or raises NotFound
    or gives None: one that is there already is not entered into the audit log again. Raises InvalidRequest,
    IdempotencyConflict.
    """
    key = request.headers.get("idempotency-key", "")
    if not key:
        return new_id
    if len(key) > _MAX_CHARS:
        raise InvalidRequest(
            f"An Idempotency-Key has at most {_MAX_CHARS} characters, this one {len(key)}.", param="Idempotency-Key"
        )
    plain = msgspec.json.encode(msgspec.json.decode(body), order="sorted")
    object_id = await store.claim(key, project=project, kind=kind, body=plain, object_id=new_id)
    if object_id != new_id and await _is_there(look, object_id):
        trail.tell(request.scope["state"], None)
    return object_id


async def _is_there(look: Callable[[str], Awaitable[object]], object_id: str) -> bool:
    try:
        return await look(object_id) is not None
    except NotFound:
        return False
