"""Which form the database has, and bringing it to the one that this code knows, before anything else uses it.

The hash `keys.SCHEMA` holds `version`, the number of the form; `id`, which tells this database from every other, so
that records on disk are never taken for those of another; and for each version the time at which it was reached.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import structlog
from msgspec import Struct

from shared import ids, keys
from shared.errors import SchemaTooNew, StoreUnavailable
from shared.paths import Paths
from shared.settings import Settings
from shared.store.client import Client
from shared.store.lock import Lock, run_under
from shared.store.migrations import STEPS, Step
from shared.store.migrations.context import MigrationContext

FIRST_VERSION = 1
_LOCK_TTL_S = 30.0
_RENEW_S = 5.0
_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 5.0

_log = structlog.get_logger()


class Schema(Struct, frozen=True, kw_only=True):
    """Identity and form of a database."""

    id: str
    version: int


def newest_version(steps: Mapping[int, Step] = STEPS) -> int:
    """Return the form that this code reads and writes."""
    return max(steps, default=FIRST_VERSION)


async def read_schema(client: Client) -> Schema | None:
    """Return what the database says of itself; None for one that no service has used yet. Raises StoreUnavailable."""
    found, version = await client.call("HMGET", keys.SCHEMA, "id", "version")
    return None if found is None else Schema(id=found.decode(), version=int(version))


async def create_schema(client: Client, schema: Schema | None = None) -> Schema:
    """Give the database an identity, that of `schema` or a new one, unless it has one, and return what it has.

    A database without one is in the first form, whether it is empty or was filled before forms were numbered.
    """
    made = schema or Schema(id=ids.new_token(), version=FIRST_VERSION)
    found, version = await client.script("create_schema", [keys.SCHEMA], [made.id, made.version, int(time.time())])
    return Schema(id=found.decode(), version=int(version))


async def ensure_schema(client: Client, settings: Settings, *, steps: Mapping[int, Step] = STEPS) -> Schema:
    """Bring the database to the newest form, however many processes do so at once, and return what it is then.

    Waits with growing delays while the database is away. Raises SchemaTooNew if a newer version has written it.
    """
    delay_s = _FIRST_DELAY_S
    while True:
        try:
            return await bring_up_to_date(client, settings, steps=steps)
        except StoreUnavailable:
            _log.warning("schema.store_unavailable", retry_s=delay_s)
        await asyncio.sleep(delay_s)
        delay_s = min(2 * delay_s, _LONGEST_DELAY_S)


async def bring_up_to_date(client: Client, settings: Settings, *, steps: Mapping[int, Step] = STEPS) -> Schema:
    """The same without waiting for the database. Raises StoreUnavailable."""
    newest = newest_version(steps)
    context = MigrationContext(settings=settings, paths=Paths(settings.home))
    while True:
        schema = await create_schema(client)
        check_version(schema.version, newest)
        if schema.version == newest:
            return schema
        lock = Lock(client, keys.SCHEMA_LOCK, ttl_s=_LOCK_TTL_S)
        if await lock.hold():
            try:
                await _advance(client, context, lock, steps)
            finally:
                await lock.release()
        else:
            await asyncio.sleep(_FIRST_DELAY_S)


def check_version(version: int, newest: int) -> None:
    """Raise SchemaTooNew unless this code, which knows forms up to `newest`, can read `version`."""
    if version > newest:
        raise SchemaTooNew(
            f"The database has form {version}, and this version of selftune knows forms up to {newest}; start the "
            "newer version again, or restore a backup from before the upgrade."
        )


async def _advance(client: Client, context: MigrationContext, lock: Lock, steps: Mapping[int, Step]) -> None:
    """Take one step under the lock; another process may have taken it before."""
    schema = await create_schema(client)
    version = schema.version + 1
    if version not in steps:
        return
    _log.info("schema.migrating", version=version)
    await run_under(lock.hold, steps[version](client, context), renew_s=_RENEW_S)
    place = [keys.SCHEMA, keys.SCHEMA_LOCK]
    if await client.script("advance_schema", place, [lock.token, schema.version, version, int(time.time())]):
        _log.info("schema.migrated", version=version)
