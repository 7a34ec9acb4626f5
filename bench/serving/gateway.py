"""The API in front of a replica, for scenes in which requests go through the gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2

from bench.serving.sides.ours import Ours
from shared.key_hash import KeyHash
from shared.store.api_keys import KeyStore
from shared.store.client import Client
from shared.store.projects import ProjectStore
from tests.api_server import KEY_SECRET, ApiServer


@asynccontextmanager
async def gateway(ours: Ours) -> AsyncIterator[httpx2.AsyncClient]:
    """Run an API on the database of `ours`; yields an HTTP client with its admin key."""
    settings = ours.settings
    api = ApiServer(ours.home, settings.redis_url, internal_key=settings.internal_key)
    try:
        await _know_key(settings.redis_url, api.key)
        headers = {"authorization": f"Bearer {api.key}"}
        async with httpx2.AsyncClient(base_url=api.url, headers=headers, trust_env=False, timeout=600) as client:
            yield client
    finally:
        api.stop()


async def _know_key(redis_url: str, key: str) -> None:
    client = Client(redis_url)
    await ProjectStore(client).ensure_default()
    await KeyStore(client, KeyHash(KEY_SECRET)).ensure(key, name="bench", project="proj_default")
    await client.close()
