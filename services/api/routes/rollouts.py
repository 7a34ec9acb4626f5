"""/v1/fine_tuning/jobs/{job_id}/rollouts: answers that a reinforcement job tried, and what graders made of them."""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from litestar import Request, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from services.api.bodies import decode, read_json
from services.api.documents import json_body
from services.api.idempotency import object_id_for
from services.api.rollouts.files import RolloutFiles, check_has_rollouts
from services.api.rollouts.listing import Wanted, rollouts_of
from services.api.rollouts.regraded import Regraded, new_regrade
from services.api.rollouts.regrading import Regrading
from services.api.rollouts.summing import Summaries
from shared import ids
from shared.records import KeyRecord
from shared.schemas.paging import Page
from shared.schemas.rollouts import RegradeRollouts, Rollout, RolloutRegrade, RolloutSummary
from shared.settings import Settings
from shared.store.eval_runs import EvalRunStore
from shared.store.idempotency import IdempotencyStore
from shared.store.jobs import JobStore

_REGRADE = msgspec.json.Decoder(RegradeRollouts)

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=100)]
Step: TypeAlias = Annotated[int | None, QueryParameter(ge=0, le=999_999_999)]
Line: TypeAlias = Annotated[int | None, QueryParameter(ge=1, le=999_999_999)]

_ROLLOUTS = "/v1/fine_tuning/jobs/{job_id:str}/rollouts"


@get(_ROLLOUTS, operation_id="listFineTuningJobRollouts")
async def list_rollouts(
    job_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    jobs: NamedDependency[JobStore],
    rollout_files: NamedDependency[RolloutFiles],
    step: Step = None,
    validation: FromQuery[bool | None] = None,
    line: Line = None,
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
    order: FromQuery[Literal["asc", "desc"]] = "asc",
) -> Page[Rollout]:
    """List the answers that a reinforcement job has tried, with their rewards, in the order of the steps.

    `step`, `validation` and `line` keep those of a step, of the training or the validation file, to one prompt.
    """
    check_has_rollouts(await jobs.get(job_id, project=caller.project))
    wanted = Wanted(step=step, validation=validation, line=line)
    return await rollouts_of(
        rollout_files, job_id, wanted, after=after or None, limit=limit, newest_first=order == "desc"
    )


@get(f"{_ROLLOUTS}/summary", operation_id="summarizeFineTuningJobRollouts")
async def summarize_rollouts(
    job_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    jobs: NamedDependency[JobStore],
    rollout_summaries: NamedDependency[Summaries],
) -> RolloutSummary:
    """Show how rewards, lengths and failures develop step by step, and signs of reward hacking."""
    check_has_rollouts(await jobs.get(job_id, project=caller.project))
    return await rollout_summaries.of(job_id)


@post(
    f"{_ROLLOUTS}/regrade",
    status_code=201,
    operation_id="regradeFineTuningJobRollouts",
    opt={"request_body": json_body("RegradeRollouts")},
)
async def regrade_rollouts(
    request: Request[Any, Any, Any],
    job_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    idempotency: NamedDependency[IdempotencyStore],
    jobs: NamedDependency[JobStore],
    eval_run_store: NamedDependency[EvalRunStore],
    regrading: NamedDependency[Regrading],
) -> RolloutRegrade:
    """Grade the answers that a job has tried with another grader; with an `Idempotency-Key`, asking twice is once."""
    job = await jobs.get(job_id, project=caller.project)
    check_has_rollouts(job)
    body = await read_json(request, limit=settings.max_body_bytes)
    wanted = decode(body, _REGRADE)
    run_id = await object_id_for(
        request,
        idempotency,
        project=caller.project,
        kind=f"regrade of {job_id}",
        body=body,
        new_id=ids.new_eval_run_id(),
        look=eval_run_store.get,
    )
    run, grader = await regrading.start(job, wanted, access=caller.access, run_id=run_id)
    return new_regrade(run, grader, job_id)


@get(f"{_ROLLOUTS}/regrade/{{run_id:str}}", operation_id="retrieveFineTuningJobRegrade")
async def retrieve_regrade(
    job_id: FromPath[str],
    run_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    jobs: NamedDependency[JobStore],
    regraded: NamedDependency[Regraded],
) -> RolloutRegrade:
    """Show the rewards of another grader step by step, beside those that the job has learnt from."""
    await jobs.get(job_id, project=caller.project)
    return await regraded.find(run_id, job_id=job_id, project=caller.project)


ROUTES = [list_rollouts, summarize_rollouts, regrade_rollouts, retrieve_regrade]
