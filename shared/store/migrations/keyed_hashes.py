"""API keys move from their SHA-256 to a keyed hash of it; they keep their ids, and clients notice nothing.

Each key is moved in one step, from a name of before to one of now, so that this may stop anywhere and be run again.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from shared import keys
from shared.errors import KeySecretMismatch, StoreUnavailable
from shared.key_hash import KeyHash
from shared.paths import key_secret
from shared.store.client import Client
from shared.store.migrations.context import MigrationContext

_RECORDS = "selftune:key:"
_USES = "selftune:key_used:"
_SHA256 = re.compile(r"[0-9a-f]{64}")


async def apply(client: Client, context: MigrationContext) -> None:
    """Move every key.

    Raises KeySecretMismatch when some were moved with another secret already, and StoreUnavailable in a process that
    does not have the secret: on a host of its own, where an api has to do it.
    """
    old = [sha256 async for sha256 in _old_keys(client)]
    if not old:
        return
    paths = context.paths
    if not (context.settings.key_secret or paths.key_secret.exists() or paths.admin_key.exists()):
        raise StoreUnavailable("An API process has to bring the database up to date first.")
    key_hash = KeyHash(key_secret(context.settings.key_secret, paths))
    await client.call("SET", keys.KEY_CHECK, key_hash.check, "NX")
    if (await client.call("GET", keys.KEY_CHECK)).decode() != key_hash.check:
        raise KeySecretMismatch(
            "Some API keys of the database are hashed with another secret than this server's key_hash.key or "
            "key_secret."
        )
    for sha256 in old:
        await _move(client, sha256, key_hash.digest_of_sha256(sha256))


async def _old_keys(client: Client) -> AsyncIterator[str]:
    """Yield the SHA-256 of every key that has not been moved."""
    cursor = 0
    while True:
        cursor, found = await client.call("SCAN", cursor, "MATCH", f"{_RECORDS}*", "COUNT", 1000)
        for name in found:
            sha256 = name.decode().removeprefix(_RECORDS)
            if _SHA256.fullmatch(sha256):
                yield sha256
        if not cursor:
            return


async def _move(client: Client, sha256: str, digest: str) -> None:
    await client.script(
        "convert_key",
        [f"{_RECORDS}{sha256}", f"{_USES}{sha256}", keys.api_key(digest), keys.key_used(digest)],
        [digest, keys.key_digest("")],
    )
