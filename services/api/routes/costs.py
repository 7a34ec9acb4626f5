"""What jobs and answers cost: estimates, usage with prices, break-even."""

import datetime
from typing import Annotated, Any, TypeAlias

import msgspec
from litestar import Request, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from services.api.bodies import decode, read_json
from services.api.costs.break_even import BreakEvens
from services.api.costs.estimates import Estimates
from services.api.costs.usage import UsageCosts, period
from services.api.documents import json_body
from shared.records import KeyRecord
from shared.schemas.costs import BreakEven, Costs, GroupBy, JobEstimate
from shared.schemas.jobs import CreateJob
from shared.settings import Settings
from shared.store.jobs import JobStore

_CREATE = msgspec.json.Decoder(CreateJob)

Against: TypeAlias = Annotated[str, QueryParameter(min_length=1, max_length=256)]
Saved: TypeAlias = Annotated[int, QueryParameter(ge=0, le=10_000_000)]


@post(
    "/v1/fine_tuning/estimates",
    status_code=200,
    operation_id="estimateFineTuningJob",
    opt={"request_body": json_body("CreateJob")},
)
async def estimate_job(
    request: Request[Any, Any, Any],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    estimates: NamedDependency[Estimates],
) -> JobEstimate:
    """Say what a job would take: tokens, steps, time, memory, price. Its body is a job's; no job is made."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _CREATE)
    return await estimates.estimate(wanted, access=caller.access)


@get("/v1/fine_tuning/jobs/{job_id:str}/break_even", operation_id="getBreakEven")
async def break_even(
    job_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    jobs: NamedDependency[JobStore],
    break_evens: NamedDependency[BreakEvens],
    against: Against,
    prompt_tokens_saved: Saved = 0,
) -> BreakEven:
    """Say after how many requests a job's training is paid back, against a hosted model of the settings.

    `prompt_tokens_saved` are those that the hosted model's prompt would have more, such as a long system prompt's.
    """
    job = await jobs.get(job_id, project=caller.project)
    return await break_evens.of(job, against=against, prompt_tokens_saved=prompt_tokens_saved)


@get("/v1/usage/costs", operation_id="getCosts")
async def costs(
    caller: NamedDependency[KeyRecord],
    usage_costs: NamedDependency[UsageCosts],
    group_by: FromQuery[GroupBy] = "model",
    start: FromQuery[str | None] = None,
    end: FromQuery[str | None] = None,
) -> Costs:
    """List what the project has used, with prices: tokens of its models' answers, devices' time of its jobs.

    From `start` to `end`, days such as 2026-11-28 (UTC); the last 30 where they are left out. By project, a key with
    the scope `admin` sees all projects.
    """
    today = datetime.datetime.now(datetime.UTC).date()
    return await usage_costs.costs(group_by, period(start, end, today=today), caller=caller)


ROUTES = [estimate_job, break_even, costs]
