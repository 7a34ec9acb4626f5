"""Answering a training process that waits for rollouts, for as long as it does wait."""

from __future__ import annotations

import asyncio

from services.trainer.launch.child_process import ChildProcess
from services.trainer.protocol import WantRollouts
from services.trainer.rollouts.gathering import Gathering


async def answer(child: ChildProcess, gathering: Gathering, wanted: WantRollouts, stopping: asyncio.Event) -> None:
    """Gather what the process wants and tell it; nothing is told if it ends, or is asked to, before that.

    Raises what Gathering.gather does.
    """
    working = asyncio.create_task(gathering.gather(wanted))
    ends = [asyncio.create_task(child.wait()), asyncio.create_task(stopping.wait())]
    try:
        await asyncio.wait({working, *ends}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await child.send(working.result())
    finally:
        for task in (working, *ends):
            task.cancel()
        await asyncio.gather(working, *ends, return_exceptions=True)
