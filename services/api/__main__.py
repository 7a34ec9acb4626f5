"""`python -m services.api`: serve until SIGTERM or Ctrl-C, then finish the answers under way."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from types import FrameType

import structlog
import uvicorn

from services.api import metrics
from services.api.access import Access
from services.api.app import create_app
from services.api.connections import Connections
from shared import tracing
from shared.errors import SchemaTooNew, StoreUnavailable
from shared.logging import configure
from shared.metrics import serve
from shared.settings import Settings
from shared.store.client import Client
from shared.store.schema import bring_up_to_date

_GRACE_S = 15
"""How long streams may go on after SIGTERM; a supervisor's patience must be longer."""


class Server(uvicorn.Server):
    """uvicorn that tells the app as soon as it was asked to stop, not when the last connection has closed."""

    def __init__(self, config: uvicorn.Config, drain: asyncio.Event) -> None:
        super().__init__(config)
        self._drain = drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._drain.set()
        super().handle_exit(sig, frame)


def main() -> None:
    settings = Settings.load()
    configure("api", level=settings.log_level)
    tracing.start("api")
    serve(metrics.REGISTRY, host=settings.metrics_host, port=settings.api_metrics_port)
    drain = asyncio.Event()
    config = uvicorn.Config(
        Access(create_app(settings, drain=drain)),
        http=Connections(limit=settings.max_connections, limit_each=settings.max_connections_each),  # type: ignore[arg-type]
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        # Longer than clients keep idle connections, so that none is closed under a request that is just being sent.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_GRACE_S,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again once it has stopped; having stopped as asked is a success.
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        asyncio.run(_prepare_database(settings))
    except SchemaTooNew as error:
        sys.exit(f"api: {error.message}")
    gc.freeze()  # a collection that looks through everything imported holds up every request for 50 to 100 ms
    structlog.get_logger().info("api.starting", host=settings.host, port=settings.port)
    Server(config, drain).run()


async def _prepare_database(settings: Settings) -> None:
    """Bring the database to its newest form, so that one that cannot be read ends this process with a sentence."""
    client = Client(settings.database_url, connections=2)
    try:
        await bring_up_to_date(client, settings)
    except StoreUnavailable as error:  # Services.start goes on trying
        structlog.get_logger().warning("database.pending", reason=error.message)
    finally:
        await client.close()


if __name__ == "__main__":
    main()
