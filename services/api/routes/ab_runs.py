"""/v1/evals/{eval_id}/ab_runs: two runs' answers beside each other, judged blind by a model and by people."""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from services.api.ab_runs.creation import AbRuns
from services.api.ab_runs.report import Reports
from services.api.ab_runs.run import decode_spec
from services.api.ab_runs.voting import Voting
from services.api.bodies import decode, read_json
from services.api.documents import json_body, json_page
from services.api.evals.creation import EvalRuns
from services.api.evals.listing import items_of
from services.api.idempotency import object_id_for
from services.api.listing import page
from shared import ids
from shared.ab_records import public_ab_run
from shared.records import KeyRecord
from shared.schemas.ab_runs import (
    AbItemStatus,
    AbNext,
    AbReport,
    AbRun,
    AbRunDeleted,
    AbVote,
    CreateAbRun,
    CreateAbVote,
)
from shared.schemas.evals import RunStatus
from shared.schemas.paging import Page
from shared.settings import Settings
from shared.store.eval_runs import AB_MARKS, EvalRunStore, Found
from shared.store.evals import EvalStore
from shared.store.idempotency import IdempotencyStore

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=100)]
Order: TypeAlias = FromQuery[Literal["asc", "desc"]]

_RUNS = "/v1/evals/{eval_id:str}/ab_runs"
_RUN = f"{_RUNS}/{{ab_run_id:str}}"
_CREATE = msgspec.json.Decoder(CreateAbRun)
_VOTE = msgspec.json.Decoder(CreateAbVote)


@post(_RUNS, status_code=201, operation_id="createAbRun", opt={"request_body": json_body("CreateAbRun")})
async def create_ab_run(
    request: Request[Any, Any, Any],
    eval_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    idempotency: NamedDependency[IdempotencyStore],
    ab_runs: NamedDependency[AbRuns],
    eval_run_store: NamedDependency[EvalRunStore],
) -> AbRun:
    """Compare the answers of two runs of an eval; with an `Idempotency-Key`, asking twice gives the same A/B run."""
    body = await read_json(request, limit=settings.max_body_bytes)
    wanted = decode(body, _CREATE)
    run_id = await object_id_for(
        request,
        idempotency,
        project=caller.project,
        kind=f"ab_run of {eval_id}",
        body=body,
        new_id=ids.new_ab_run_id(),
        look=eval_run_store.get,
    )
    return _public(await ab_runs.create(wanted, eval_id=eval_id, access=caller.access, run_id=run_id))


@get(_RUNS, operation_id="listAbRuns")
async def list_ab_runs(
    eval_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    eval_store: NamedDependency[EvalStore],
    eval_run_store: NamedDependency[EvalRunStore],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
    order: Order = "asc",
    status: FromQuery[RunStatus | None] = None,
) -> Page[AbRun]:
    """List an eval's A/B runs, oldest first unless `order` is `desc`; `status` keeps those that have it."""
    await eval_store.get(eval_id, project=caller.project)
    found, more = await eval_run_store.list(
        eval_id, status=status, after=after or None, limit=limit, newest_first=order == "desc", kind="ab"
    )
    return page([_public(one) for one in found], has_more=more)


@get(_RUN, operation_id="getAbRun")
async def retrieve_ab_run(
    eval_id: FromPath[str],
    ab_run_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    eval_run_store: NamedDependency[EvalRunStore],
) -> AbRun:
    """Look an A/B run up, with what it has come to so far."""
    return _public(await eval_run_store.find(ab_run_id, eval_id=eval_id, project=caller.project, kind="ab"))


@post(f"{_RUN}/cancel", status_code=200, operation_id="cancelAbRun")
async def cancel_ab_run(
    eval_id: FromPath[str],
    ab_run_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    eval_runs: NamedDependency[EvalRuns],
) -> AbRun:
    """Stop an A/B run where it is; the judgements that it has stay, and people may go on voting on those rows."""
    return _public(await eval_runs.cancel(ab_run_id, eval_id=eval_id, project=caller.project, kind="ab"))


@delete(_RUN, status_code=200, operation_id="deleteAbRun")
async def delete_ab_run(
    eval_id: FromPath[str],
    ab_run_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    eval_runs: NamedDependency[EvalRuns],
) -> AbRunDeleted:
    """Delete an A/B run with its judgements and votes; one under way is stopped. The runs that it compares stay."""
    await eval_runs.delete(ab_run_id, eval_id=eval_id, project=caller.project, kind="ab")
    return AbRunDeleted(ab_run_id=ab_run_id)


@get(f"{_RUN}/items", operation_id="listAbRunItems", opt={"response_body": json_page("AbItem")})
async def list_ab_items(
    eval_id: FromPath[str],
    ab_run_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    eval_run_store: NamedDependency[EvalRunStore],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
    order: Order = "asc",
    status: FromQuery[AbItemStatus | None] = None,
) -> Response[bytes]:
    """List rows with both answers and what the judge said of them; `status` keeps some."""
    await eval_run_store.find_record(ab_run_id, eval_id=eval_id, project=caller.project, kind="ab")
    mark = None if status is None else AB_MARKS[status]
    return await items_of(
        eval_run_store, ab_run_id, mark=mark, after=after or None, limit=limit, newest_first=order == "desc"
    )


@get(f"{_RUN}/report", operation_id="reportAbRun")
async def report_ab_run(
    eval_id: FromPath[str],
    ab_run_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    ab_reports: NamedDependency[Reports],
) -> AbReport:
    """Say whose answers are better, by the judge and by people: only where chance is no explanation."""
    return await ab_reports.report(ab_run_id, eval_id=eval_id, project=caller.project)


@get(f"{_RUN}/next", operation_id="nextAbPair")
async def next_pair(
    eval_id: FromPath[str],
    ab_run_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    ab_voting: NamedDependency[Voting],
    voter: Annotated[str, QueryParameter(min_length=1, max_length=128)],
) -> AbNext:
    """Give a voter a pair to vote on, without saying whose answers these are."""
    return await ab_voting.next(ab_run_id, voter, eval_id=eval_id, project=caller.project)


@post(f"{_RUN}/votes", status_code=201, operation_id="createAbVote", opt={"request_body": json_body("CreateAbVote")})
async def create_vote(
    request: Request[Any, Any, Any],
    eval_id: FromPath[str],
    ab_run_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    ab_voting: NamedDependency[Voting],
) -> AbVote:
    """Count a person's vote on a pair; the same vote twice is the same as once."""
    given = decode(await read_json(request, limit=settings.max_body_bytes), _VOTE)
    return await ab_voting.vote(ab_run_id, given, eval_id=eval_id, project=caller.project)


def _public(found: Found) -> AbRun:
    return public_ab_run(found.record, found.tally, decode_spec(found.source))


ROUTES = [
    create_ab_run, list_ab_runs, retrieve_ab_run, cancel_ab_run, delete_ab_run, list_ab_items, report_ab_run,
    next_pair, create_vote,
]  # fmt: skip
