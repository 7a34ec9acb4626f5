"""Requests that may be sent twice: which object an Idempotency-Key stands for.

The key is claimed before the object exists. Whoever sends it again gets the same id and creates the object with it, or
finds that it is there: creating by id is the same once and twice.
"""

from __future__ import annotations

import hashlib

import msgspec
from msgspec import Struct

from shared import keys
from shared.errors import IdempotencyConflict
from shared.store.client import Client

_KEPT_S = 86_400


class IdempotencyRecord(Struct, frozen=True, kw_only=True):
    """What a key was used for first."""

    body_sha256: str
    object_id: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(IdempotencyRecord).decode


class IdempotencyStore:
    """Keys of one day, each in its project and for one kind of object."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def claim(self, key: str, *, project: str, kind: str, body: bytes, object_id: str) -> str:
        """Return the id that stands for `key`: `object_id` if the key is new, else the one of its first use.

        Raises IdempotencyConflict when the key came with another `body`.
        """
        record = IdempotencyRecord(body_sha256=hashlib.sha256(body).hexdigest(), object_id=object_id)
        place = keys.idempotency(hashlib.sha256(f"{project}\0{kind}\0{key}".encode()).hexdigest())
        _, known = await self._client.together([("SET", place, _encode(record), "NX", "EX", _KEPT_S), ("GET", place)])
        first = _decode(known)
        if first.body_sha256 != record.body_sha256:
            raise IdempotencyConflict(
                "This Idempotency-Key was used with another request body; use a new key for another request.",
                param="Idempotency-Key",
            )
        return first.object_id
