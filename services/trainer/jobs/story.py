"""Reading a job's story from its newest event backwards, however long it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

from services.trainer.stores import Stores, persist
from shared.schemas.events import Event

_PAGE = 100


async def newest_first(stores: Stores, job_id: str) -> AsyncIterator[Event]:
    """Yield every event of a job. Raises NotFound when there is no such job any longer."""
    after: str | None = None
    more = True
    while more:
        page, more = await persist(partial(stores.jobs.events, job_id, after=after, limit=_PAGE))
        for told in page:
            yield told
        after = page[-1].id if page else None
