"""An inference server's wire behind an api, so that chats can be asked for without a model's time."""

from __future__ import annotations

from shared.store.client import Client
from shared.store.presence import Presence
from shared.store.registry import Registry
from tests.api_server import ApiServer, make_base, make_replica, with_store
from tests.fakes.upstream import Upstream


def serve(api: ApiServer, upstream: Upstream) -> None:
    """Let the api know a base, and the server that has it."""

    async def fill(client: Client) -> None:
        await Registry(client).put_base(make_base())
        await Presence(client).beat_replica(make_replica(upstream.url), ttl_s=86_400)

    with_store(api.settings.redis_url, fill)
