"""`python -m services.trainer`: the worker, until SIGTERM. Settings come from SELFTUNE_* and the settings file."""

from __future__ import annotations

import asyncio
import logging
import sys

from services.trainer import metrics
from services.trainer.worker import run_until_signal
from shared import tracing
from shared.errors import SchemaTooNew
from shared.logging import configure
from shared.metrics import serve
from shared.settings import Settings


def main() -> None:
    settings = Settings.load()
    configure("trainer", level=settings.log_level)
    logging.getLogger("arq").setLevel(logging.WARNING)  # it tells every poll; jobs are told by our own events
    tracing.start("trainer")
    serve(metrics.REGISTRY, host=settings.metrics_host, port=settings.trainer_metrics_port)
    try:
        asyncio.run(run_until_signal(settings))
    except SchemaTooNew as error:
        sys.exit(f"trainer: {error.message}")
    finally:
        tracing.flush()


if __name__ == "__main__":
    main()
