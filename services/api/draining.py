"""Waiting that ends when the server is to stop."""

from __future__ import annotations

import asyncio
from contextlib import suppress


async def pause(drain: asyncio.Event, seconds: float) -> None:
    """Wait for so long, or until `drain` is set."""
    with suppress(TimeoutError):
        await asyncio.wait_for(drain.wait(), seconds)
