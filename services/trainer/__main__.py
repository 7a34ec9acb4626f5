"""`python -m services.trainer`: the worker, until SIGTERM. Settings come from SELFTUNE_* and the settings file."""

from __future__ import annotations

import asyncio
import logging
import sys

from services.trainer.worker import run_until_signal
from shared.errors import SchemaTooNew
from shared.logging import configure
from shared.settings import Settings


def main() -> None:
    settings = Settings.load()
    configure("trainer", level=settings.log_level)
    logging.getLogger("arq").setLevel(logging.WARNING)  # it tells every poll; jobs are told by our own events
    try:
        asyncio.run(run_until_signal(settings))
    except SchemaTooNew as error:
        sys.exit(f"trainer: {error.message}")


if __name__ == "__main__":
    main()
