"""Working for a job only as long as its owner wants it: whoever cancels or pauses it need not wait for the end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from services.trainer.stores import Stores, persist
from shared.errors import NotFound
from shared.states import JobState

PERIOD_S = 1.0
VALIDATED = frozenset({JobState.VALIDATING_FILES})
TRAINABLE = frozenset({JobState.QUEUED, JobState.RUNNING})

T = TypeVar("T")


async def while_wanted(
    stores: Stores, job_id: str, states: frozenset[JobState], work: Coroutine[Any, Any, T]
) -> T | None:
    """Do the work; None if it was cancelled because the job is gone, or in none of `states`.

    Raises what the work raises.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_until_unwanted(stores, job_id, states))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watching.cancel()
        if not working.done():
            working.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
    if not working.cancelled():
        return working.result()
    watching.result()  # raises what kept it from looking
    return None


async def _until_unwanted(stores: Stores, job_id: str, states: frozenset[JobState]) -> None:
    while True:
        try:
            record = await persist(lambda: stores.jobs.get(job_id))
        except NotFound:
            return
        if record.status not in states:
            return
        await asyncio.sleep(PERIOD_S)
