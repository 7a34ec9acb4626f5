"""Several workers on one list of things to do, until it is done or they are to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


async def side_by_side(worker: Callable[[], Coroutine[Any, Any, None]], *, count: int, stop: asyncio.Event) -> None:
    """Return when `count` workers have ended, or soon after `stop`: what is under way then is dropped.

    Raises what the first of them raises; the others are cancelled then.
    """
    workers = {asyncio.create_task(worker()) for _ in range(count)}
    stopping, waiting = asyncio.create_task(stop.wait()), set[asyncio.Task[Any]](workers)
    try:
        while waiting and not stopping.done():
            done, waiting = await asyncio.wait({*waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            waiting.discard(stopping)
            for task in done:
                task.result()
    finally:
        for task in (*workers, stopping):
            task.cancel()
        await asyncio.gather(*workers, stopping, return_exceptions=True)
