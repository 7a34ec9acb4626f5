"""The Idempotency-Key header: creating with the same key and body gives the same object.

After the draft "The Idempotency-Key HTTP Header Field" (draft-ietf-httpapi-idempotency-key-header).
"""

from __future__ import annotations

from typing import Any

import msgspec
from litestar.connection import Request

from shared.errors import InvalidRequest
from shared.store.idempotency import IdempotencyStore

_MAX_CHARS = 255


async def object_id_for(
    request: Request[Any, Any, Any], store: IdempotencyStore, *, project: str, kind: str, body: bytes, new_id: str
) -> str:
    """Return the id to create an object with: `new_id`, or the one that the request's key stands for already.

    `body` is a valid JSON document; its spelling does not count. Raises InvalidRequest, IdempotencyConflict.
    """
    key = request.headers.get("idempotency-key", "")
    if not key:
        return new_id
    if len(key) > _MAX_CHARS:
        raise InvalidRequest(
            f"An Idempotency-Key has at most {_MAX_CHARS} characters, this one {len(key)}.", param="Idempotency-Key"
        )
    plain = msgspec.json.encode(msgspec.json.decode(body), order="sorted")
    return await store.claim(key, project=project, kind=kind, body=plain, object_id=new_id)
