"""Bearer keys. Only their SHA-256 is stored: a key has 256 random bits, so a plain hash cannot be searched."""

from __future__ import annotations

import hashlib
import time

import msgspec

from shared import keys
from shared.errors import NotAuthenticated
from shared.records import DEFAULT_PROJECT, KeyRecord
from shared.store.client import Client

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(KeyRecord).decode


class KeyStore:
    """Keys by digest."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def ensure(self, key: str, *, name: str, project: str = DEFAULT_PROJECT) -> None:
        """Make a key known; a key that is known stays as it is."""
        record = KeyRecord(project=project, name=name, created_at=int(time.time()))
        await self._client.call("SET", keys.api_key(_digest(key)), _encode(record), "NX")

    async def authenticate(self, key: str) -> KeyRecord:
        """Return what the key may see. Raises NotAuthenticated; the message shows no more than its ends."""
        raw = await self._client.call("GET", keys.api_key(_digest(key)))
        if raw is None:
            raise NotAuthenticated(f"Incorrect API key provided: {_masked(key)}.")
        return _decode(raw)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _masked(key: str) -> str:
    return f"{key[:3]}***{key[-2:]}" if len(key) > 12 else "***"
