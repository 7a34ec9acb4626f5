"""Jobs that a flow makes: submitted within the project's limit, looked at, stopped with the flow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import structlog

from services.api.jobs.control import JobControl
from services.api.jobs.submission import Submission
from shared.errors import InvalidRequest, NotFound, PermissionDenied, RateLimited, TransitionRefused
from shared.flow_records import FlowError, FlowRecord
from shared.records import JobRecord
from shared.schemas.jobs import CreateJob
from shared.states import TERMINAL
from shared.store.jobs import JobStore
from shared.store.storage import STORAGE_FULL

_log = structlog.get_logger()

WAITING = "waiting"
"""Status of what has no job yet."""
REFUSED = "refused"
"""Status of what no job could be made of."""
OVER = frozenset(state.value for state in TERMINAL) | {REFUSED}
"""Statuses after which nothing comes."""


class FlowJobs:
    """`limit_of` gives a project's limit of unfinished jobs, None for none."""

    def __init__(
        self,
        jobs: JobStore,
        submission: Submission,
        control: JobControl,
        limit_of: Callable[[str], Awaitable[int | None]],
    ) -> None:
        self.store = jobs
        self._submission = submission
        self._control = control
        self._limit_of = limit_of

    async def submit(self, request: CreateJob, job_id: str, flow: FlowRecord) -> JobRecord | FlowError:
        """Make a job, or return why none can be made; twice is the same as once.

        Raises RateLimited while the project may have no more jobs, and Unavailable.
        """
        limit = await self._limit_of(flow.project)
        try:
            return await self._submission.submit(request, access=flow.access, job_id=job_id, limit=limit)
        except (InvalidRequest, NotFound, PermissionDenied) as error:
            _log.info("flow.job_refused", job_id=job_id, code=error.code)
            return FlowError(code=error.code or "invalid_request", message=error.message)

    async def many(self, job_ids: Sequence[str]) -> dict[str, JobRecord]:
        """Return those that exist, by id."""
        return await self.store.many(job_ids)

    async def cancel(self, job_id: str, *, project: str) -> None:
        """Stop a job, if there is one that has not ended."""
        with suppress(NotFound, TransitionRefused):
            await self._control.cancel(job_id, project=project)


def failure_of(job: JobRecord) -> FlowError | None:
    """Return why a job has failed; None if it has not."""
    return None if job.error is None else FlowError(code=job.error.code, message=job.error.message)


def lasting(error: RateLimited) -> FlowError | None:
    """Return the refusal that waiting does not end: storage without room. None for the others."""
    return FlowError(code=STORAGE_FULL, message=error.message) if error.code == STORAGE_FULL else None
