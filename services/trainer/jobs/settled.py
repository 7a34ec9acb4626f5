"""Whether a job is at its end, and nobody works on it any more."""

from __future__ import annotations

from services.trainer.stores import Stores
from shared.errors import NotFound
from shared.records import JobRecord
from shared.states import TERMINAL


async def ended(stores: Stores, job_id: str) -> JobRecord | None:
    """Return a job that has ended and that nobody holds; None also for one that is not known here."""
    try:
        record = await stores.jobs.get(job_id)
    except NotFound:
        return None
    return None if record.status not in TERMINAL or await stores.leases.held(job_id) else record
