"""What the engine's fork server imports, and nobody else: see process."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import shutil
import signal
from pathlib import Path

from services.inference import lifeline

lifeline.enter()  # first: the imports below take many seconds
# A stop of the whole group or unit must not end the server, and with it an engine whose answers are still going out.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
gc.disable()

import vllm.lora.worker_manager  # noqa: E402
import vllm.model_executor.models.llama  # noqa: E402
import vllm.v1.attention.backends.cpu_attn  # noqa: E402
import vllm.v1.engine.core  # noqa: E402, F401

import services.inference.engine.worker_cpu  # noqa: E402, F401
from services.inference.engine.arguments import compiled_digest  # noqa: E402


def _compile() -> None:
    """Fill the cache of compiled code in a process of its own: vLLM's start breaks where numba was imported before.

    What cannot be used, after a power cut or on a full disk, is removed; the engine then does without.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            importlib.import_module("services.inference.engine.compiled_products")
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    cache = Path(os.environ.get("NUMBA_CACHE_DIR", ""))
    if status and cache.name == compiled_digest():  # a folder of somebody else's choice is not ours to remove
        shutil.rmtree(cache, ignore_errors=True)


_compile()
# Nothing is left to be done at the server's end, and some library complains when it is taken apart then.
atexit.register(os._exit, 0)
gc.freeze()  # the collector would write to pages that the engine shares
gc.enable()
