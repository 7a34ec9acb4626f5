"""The keyed hash under which API keys are stored, and what else is derived from the same secret.

A key's digest is HMAC-SHA256 with the secret over the key's SHA-256, so that the database alone neither tells whether
somebody has a certain key nor lets a key be planted. The SHA-256 inside lets databases that stored that alone be
converted without their keys.
"""

from __future__ import annotations

import hashlib
import hmac

_CHECK = b"selftune: check of the key secret"
_SALT = b"selftune: prefix cache of "


class KeyHash:
    """Hashes with one secret. Digests are 64 hexadecimal digits."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def digest(self, key: str) -> str:
        """Return the digest under which a key is stored."""
        return self._keyed(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest())

    def digest_of_sha256(self, sha256: str) -> str:
        """Return the same from the hexadecimal SHA-256 of a key."""
        return self._keyed(bytes.fromhex(sha256))

    @property
    def check(self) -> str:
        """What the database keeps to tell the secret that it was filled with from another."""
        return self._keyed(_CHECK)

    def cache_salt(self, project: str) -> str:
        """Return what separates a project's prompts from others' in a prefix cache; nobody else can guess it."""
        return self._keyed(_SALT + project.encode())

    def _keyed(self, data: bytes) -> str:
        return hmac.new(self._secret, data, hashlib.sha256).hexdigest()
