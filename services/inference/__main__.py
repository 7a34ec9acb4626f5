"""`python -m services.inference`: one replica, configured by SELFTUNE_* variables and the settings file."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from multiprocessing import util

from services.inference import launcher, lifeline
from services.inference.engine import process as engine_process
from services.inference.engine.arguments import is_cpu_build, prepare_environment
from shared import tracing
from shared.errors import SelftuneError
from shared.logging import configure
from shared.process import die_with_parent
from shared.settings import Settings


def main() -> int:
    """Run a replica until it is told to stop; returns the exit status."""
    die_with_parent()
    lifeline.install()
    try:
        settings = Settings.load()
        configure("inference", level=settings.log_level)
        prepare_environment(settings, os.environ)
        tracing.start("inference")
        if is_cpu_build():
            engine_process.warm_up()
        return asyncio.run(launcher.run(settings))
    except SelftuneError as error:
        sys.stderr.write(f"inference: {error.message}\n")
        return 1


if __name__ == "__main__":
    status = main()
    tracing.flush()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    util._run_finalizers()  # type: ignore[attr-defined]  # removes the folder of multiprocessing's sockets
    # Everything is closed by now. The interpreter's own teardown takes seconds with these libraries loaded, and fills
    # the log with the types that their bindings leak.
    os._exit(status)
