"""Waiting for an inference server: told once in the job's story, however long it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from shared.schemas.events import Event
from shared.store.jobs import event

Tell = Callable[[Event], Awaitable[None]]

PAUSE_S = 2.0


class Waiting:
    """Pauses for all of a job's questions that no server answers; only the first of them is told of."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._told = False

    async def pause(self, reason: str, *, times: int = 1) -> None:
        """Wait a little, or so many times as long, before the question is asked again."""
        if not self._told:
            self._told = True
            await self._tell(waiting_event(reason))
        await asyncio.sleep(times * PAUSE_S)

    def over(self) -> None:
        """Say that a server answers: the next time that none does is told again."""
        self._told = False


def waiting_event(reason: str) -> Event:
    """Tell what a job that has a training process waits for."""
    message = f"The job waits for an inference server, to have its prompts answered: {reason}. It goes on by itself"
    return event(message, level="warn", data={"waiting_for": "inference"})
