"""`python -m services.inference.explain`: print what this machine's server would choose, as JSON, and end."""

from __future__ import annotations

import asyncio
import sys

import msgspec

from services.inference.choices import choices
from shared.errors import SelftuneError, StoreUnavailable
from shared.records import BaseRecord
from shared.settings import Settings
from shared.store.client import Client
from shared.store.registry import Registry


async def _base(settings: Settings) -> BaseRecord | None:
    try:
        client = Client(settings.database_url)
    except ValueError:  # no URL of a database, about which the doctor has a line
        return None
    try:
        registry = Registry(client)
        base_id = settings.public_base_id
        if settings.merged_model:
            merged = await registry.get(settings.merged_model)
            base_id = "" if merged is None else merged.base
        base = await registry.base(base_id)
        return None if base is None else base.placed(settings.home)
    except StoreUnavailable:
        return None
    finally:
        await client.close()


def main() -> int:
    try:
        settings = Settings.load()
        found = choices(settings, asyncio.run(_base(settings)))
    except SelftuneError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
