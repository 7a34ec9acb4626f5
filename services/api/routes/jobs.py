"""/v1/fine_tuning/jobs"""

import asyncio
from typing import Annotated, Any, TypeAlias

import msgspec
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Stream

from services.api.auth import is_still_let_in
from services.api.bodies import decode, read_json
from services.api.documents import EVENTS, METADATA, json_body
from services.api.idempotency import object_id_for
from services.api.jobs.control import JobControl
from services.api.jobs.preview import PreviewFile, preview
from services.api.jobs.sse import follow
from services.api.jobs.submission import Submission
from services.api.listing import cut, matching_jobs, metadata_filter, page
from shared import ids
from shared.paths import Paths
from shared.records import KeyRecord
from shared.schemas.checkpoints import Checkpoint
from shared.schemas.jobs import CreateJob, Job
from shared.schemas.paging import Page
from shared.schemas.preview import Preview
from shared.settings import Settings
from shared.store.api_keys import Identity
from shared.store.idempotency import IdempotencyStore
from shared.store.jobs import JobStore

_CREATE = msgspec.json.Decoder(CreateJob)

FirstRow: TypeAlias = Annotated[int, QueryParameter(ge=0)]
RowLimit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=20)]
Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=1000)]


@post(
    "/v1/fine_tuning/jobs",
    status_code=200,
    operation_id="createFineTuningJob",
    opt={"request_body": json_body("CreateJob")},
)
async def create_job(
    request: Request[Any, Any, Any],
    identity: NamedDependency[Identity],
    settings: NamedDependency[Settings],
    idempotency: NamedDependency[IdempotencyStore],
    submission: NamedDependency[Submission],
    jobs: NamedDependency[JobStore],
) -> Job:
    """Fine-tune a model on an uploaded file; with an `Idempotency-Key` header, asking twice gives the same job."""
    project = identity.project.id
    body = await read_json(request, limit=settings.max_body_bytes)
    wanted = decode(body, _CREATE)
    job_id = await object_id_for(
        request, idempotency, project=project, kind="job", body=body, new_id=ids.new_job_id(), look=jobs.get
    )
    record = await submission.submit(
        wanted, access=identity.key.access, job_id=job_id, limit=identity.project.limits.concurrent_jobs or None
    )
    return record.public(paused_as=settings.paused_as)


@get("/v1/fine_tuning/jobs", operation_id="listFineTuningJobs", opt={"query": [METADATA]})
async def list_jobs(
    request: Request[Any, Any, Any],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    jobs: NamedDependency[JobStore],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
) -> Page[Job]:
    """List jobs, newest first; `metadata[key]=value` keeps those that carry it, `metadata=null` those without any."""
    wanted = metadata_filter(request.query_params)
    records, more = await matching_jobs(jobs, caller.project, wanted, after=after or None, limit=limit)
    return page([record.public(paused_as=settings.paused_as) for record in records], has_more=more)


@get("/v1/fine_tuning/jobs/{job_id:str}", operation_id="retrieveFineTuningJob")
async def retrieve_job(
    job_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    jobs: NamedDependency[JobStore],
) -> Job:
    """Look a job up."""
    return (await jobs.get(job_id, project=caller.project)).public(paused_as=settings.paused_as)


@post("/v1/fine_tuning/jobs/{job_id:str}/cancel", status_code=200, operation_id="cancelFineTuningJob")
async def cancel_job(
    job_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    control: NamedDependency[JobControl],
) -> Job:
    """Stop a job; cancelling a finished one is refused, cancelling twice is the same as once."""
    return (await control.cancel(job_id, project=caller.project)).public(paused_as=settings.paused_as)


@post("/v1/fine_tuning/jobs/{job_id:str}/pause", status_code=200, operation_id="pauseFineTuningJob")
async def pause_job(
    job_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    control: NamedDependency[JobControl],
) -> Job:
    """Stop a job until it is resumed; what it has learnt is saved, and its trainer is free for others."""
    return (await control.pause(job_id, project=caller.project)).public(paused_as=settings.paused_as)


@post("/v1/fine_tuning/jobs/{job_id:str}/resume", status_code=200, operation_id="resumeFineTuningJob")
async def resume_job(
    job_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    control: NamedDependency[JobControl],
) -> Job:
    """Let a paused job go on from where it was, with the same result as without the pause."""
    return (await control.resume(job_id, project=caller.project)).public(paused_as=settings.paused_as)


@get("/v1/fine_tuning/jobs/{job_id:str}/events", operation_id="listFineTuningEvents", opt={"response_body": EVENTS})
async def list_events(
    request: Request[Any, Any, Any],
    job_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    jobs: NamedDependency[JobStore],
    drain: NamedDependency[asyncio.Event],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
    stream: FromQuery[bool] = False,
) -> Response[Any]:
    """List what happened in a job, newest first.

    With `stream=true` they are server-sent events instead: oldest first, from the beginning or behind `Last-Event-ID`
    or `after`, until the job has ended.
    """
    await jobs.get(job_id, project=caller.project)
    if stream:
        return await _stream_events(request, jobs, job_id, after or None, drain)
    events, more = await jobs.events(job_id, after=after or None, limit=limit)
    return Response(page(events, has_more=more))


async def _stream_events(
    request: Request[Any, Any, Any], jobs: JobStore, job_id: str, after: str | None, drain: asyncio.Event
) -> Response[Any]:
    after = request.headers.get("last-event-id") or after
    if after is not None:
        await jobs.check_event(job_id, after)
    return Stream(
        follow(jobs, job_id, after=after, drain=drain, allowed=lambda: is_still_let_in(request)),
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


@get("/v1/fine_tuning/jobs/{job_id:str}/checkpoints", operation_id="listFineTuningJobCheckpoints")
async def list_checkpoints(
    job_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    jobs: NamedDependency[JobStore],
    limit: Limit = 10,
    after: FromQuery[str | None] = None,
) -> Page[Checkpoint]:
    """List a job's checkpoints, newest first."""
    await jobs.get(job_id, project=caller.project)
    return cut(await jobs.checkpoints(job_id), after=after or None, limit=limit)


@get("/v1/fine_tuning/jobs/{job_id:str}/preview", operation_id="previewFineTuningJob")
async def preview_rows(
    job_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    jobs: NamedDependency[JobStore],
    paths: NamedDependency[Paths],
    file: FromQuery[PreviewFile] = "training",
    row: FirstRow = 0,
    limit: RowLimit = 1,
) -> Preview:
    """Show rows of a job's file token by token: what is trained on, what is only read, what is cut.

    From the end of validation on. `row` counts the file's rows from 0.
    """
    record = await jobs.get(job_id, project=caller.project)
    return await asyncio.to_thread(preview, paths, record, file, row=row, limit=limit)


ROUTES = [
    create_job, list_jobs, retrieve_job, cancel_job, pause_job, resume_job, list_events, list_checkpoints, preview_rows,
]  # fmt: skip
