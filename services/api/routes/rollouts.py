"""/v1/fine_tuning/jobs/{job_id}/rollouts: answers that a reinforcement job tried, and what graders made of them."""

from typing import Annotated, Literal, TypeAlias

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from services.api.rollouts.files import RolloutFiles, check_has_rollouts
from services.api.rollouts.listing import Wanted, rollouts_of, summary_of
from shared.records import KeyRecord
from shared.schemas.paging import Page
from shared.schemas.rollouts import Rollout, RolloutSummary
from shared.store.jobs import JobStore

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
    rollout_files: NamedDependency[RolloutFiles],
) -> RolloutSummary:
    """Show how rewards, lengths and failures develop step by step, and signs of reward hacking."""
    check_has_rollouts(await jobs.get(job_id, project=caller.project))
    return await summary_of(rollout_files, job_id)


ROUTES = [list_rollouts, summarize_rollouts]
