"""The engine's process on a CPU: forked from a server that imports vLLM while the launcher does the same.

A new process would begin those imports, some eight seconds of one core, when the launcher's own have ended. The server
(multiprocessing's) has no threads and computes nothing, which is what makes a fork of it safe; the engine shares the
memory of what was imported with it.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess

from services.inference import lifeline

PRELOADED = "services.inference.engine.preload"


class EngineProcess(ForkServerProcess):
    """A forked process with the environment that the launcher has when it starts, as a new one would have it."""

    def start(self) -> None:
        self._environment = {name: value for name, value in os.environ.items() if name != lifeline.PARENT_PID}
        super().start()

    def run(self) -> None:
        os.environ.update(self._environment)
        super().run()


class EngineContext(ForkServerContext):
    """What vLLM is given in place of its own multiprocessing context."""

    Process = EngineProcess


_context = EngineContext()


def warm_up() -> None:
    """Start the server, in the main thread and before any other thread imports vLLM; it imports by itself."""
    multiprocessing.set_forkserver_preload([PRELOADED])
    forkserver.ensure_running()


def use_in_vllm() -> None:
    """Have vLLM fork its engine from the server; call after vLLM was imported."""
    from vllm.v1.engine import utils

    utils.get_mp_context = lambda: _context
