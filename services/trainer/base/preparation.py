"""Having the base model ready, from the worker's side: a process of its own does it, since it needs torch."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

import structlog

from services.trainer.stores import Stores

RETRY_S = 10.0
_LAST_BYTES = 2000

log = structlog.get_logger()


async def prepare_base(stores: Stores, explain: Callable[[str], None]) -> None:
    """Run `python -m services.trainer.base.prepare` until it succeeds; `explain` hears why it has to be repeated."""
    explain("preparing base model")
    while True:
        problem = await _run(stores)
        if problem is None:
            return
        log.error("base.failed", reason=problem)
        explain(f"the base model cannot be prepared: {problem}")
        await asyncio.sleep(RETRY_S)


async def _run(stores: Stores) -> str | None:
    """Return None when the base is ready, else the last line of what went wrong."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.trainer.base.prepare", str(os.getpid()),
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, start_new_session=True,
        env={**os.environ, **stores.settings.to_env(), "HF_HUB_DISABLE_TELEMETRY": "1"},
    )  # fmt: skip
    try:
        _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == 0:
        return None
    lines = errors[-_LAST_BYTES:].decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit status {process.returncode}"
