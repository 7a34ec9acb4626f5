"""/v1/evals, their runs and what came of each row."""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter
from msgspec import Raw, Struct

from services.api.bodies import decode, read_json
from services.api.documents import json_body, json_page
from services.api.evals.comparison import Comparisons
from services.api.evals.creation import EvalRuns
from services.api.evals.definitions import Evals
from services.api.evals.listing import item_of, items_of
from services.api.gateway.raw_pages import json_response, page_of
from services.api.idempotency import object_id_for
from services.api.listing import page
from shared import ids
from shared.records import KeyRecord
from shared.schemas.evals import (
    CreateEval,
    CreateEvalRun,
    Eval,
    EvalDeleted,
    EvalRun,
    EvalRunComparison,
    EvalRunDeleted,
    RunStatus,
    UpdateEval,
)
from shared.schemas.paging import Page
from shared.settings import Settings
from shared.store.eval_runs import MARKS, EvalRunStore, Found
from shared.store.evals import EvalStore
from shared.store.idempotency import IdempotencyStore

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=100)]
Order: TypeAlias = FromQuery[Literal["asc", "desc"]]

_RUN = "/v1/evals/{eval_id:str}/runs/{run_id:str}"


class _Posted(Struct, frozen=True):
    """A run's data source as it was posted."""

    data_source: Raw


_CREATE = msgspec.json.Decoder(CreateEval)
_UPDATE = msgspec.json.Decoder(UpdateEval)
_CREATE_RUN = msgspec.json.Decoder(CreateEvalRun)
_decode_posted = msgspec.json.Decoder(_Posted).decode


@post("/v1/evals", status_code=201, operation_id="createEval", opt={"request_body": json_body("CreateEval")})
async def create_eval(
    request: Request[Any, Any, Any],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    idempotency: NamedDependency[IdempotencyStore],
    evals: NamedDependency[Evals],
    eval_store: NamedDependency[EvalStore],
) -> Eval:
    """Say what rows look like and how they are graded; with an `Idempotency-Key`, asking twice gives the same eval."""
    body = await read_json(request, limit=settings.max_body_bytes)
    wanted = decode(body, _CREATE)
    eval_id = await object_id_for(
        request,
        idempotency,
        project=caller.project,
        kind="eval",
        body=body,
        new_id=ids.new_eval_id(),
        look=eval_store.find,
    )
    return (await evals.create(wanted, project=caller.project, eval_id=eval_id)).public()


@get("/v1/evals", operation_id="listEvals")
async def list_evals(
    caller: NamedDependency[KeyRecord],
    eval_store: NamedDependency[EvalStore],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
    order: Order = "asc",
    order_by: FromQuery[Literal["created_at", "updated_at"]] = "created_at",
) -> Page[Eval]:
    """List evals, oldest first unless `order` is `desc`."""
    records, more = await eval_store.list(
        caller.project,
        after=after or None,
        limit=limit,
        by_change=order_by == "updated_at",
        newest_first=order == "desc",
    )
    return page([record.public() for record in records], has_more=more)


@get("/v1/evals/{eval_id:str}", operation_id="getEval")
async def retrieve_eval(
    eval_id: FromPath[str], caller: NamedDependency[KeyRecord], eval_store: NamedDependency[EvalStore]
) -> Eval:
    """Look an eval up."""
    return (await eval_store.get(eval_id, project=caller.project)).public()


@post(
    "/v1/evals/{eval_id:str}",
    status_code=200,
    operation_id="updateEval",
    opt={"request_body": json_body("UpdateEval")},
)
async def update_eval(
    request: Request[Any, Any, Any],
    eval_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    evals: NamedDependency[Evals],
) -> Eval:
    """Change an eval's name or metadata; what it grades, and how, stays."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _UPDATE)
    return (await evals.update(eval_id, wanted, project=caller.project)).public()


@delete("/v1/evals/{eval_id:str}", status_code=200, operation_id="deleteEval")
async def delete_eval(
    eval_id: FromPath[str], caller: NamedDependency[KeyRecord], evals: NamedDependency[Evals]
) -> EvalDeleted:
    """Delete an eval with all its runs; those under way are stopped."""
    await evals.delete(eval_id, project=caller.project)
    return EvalDeleted(eval_id=eval_id)


@post(
    "/v1/evals/{eval_id:str}/runs",
    status_code=201,
    operation_id="createEvalRun",
    opt={"request_body": json_body("CreateEvalRun"), "response_body": json_body("EvalRun")},
)
async def create_run(
    request: Request[Any, Any, Any],
    eval_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    idempotency: NamedDependency[IdempotencyStore],
    eval_runs: NamedDependency[EvalRuns],
    eval_run_store: NamedDependency[EvalRunStore],
) -> Response[bytes]:
    """Have rows answered and graded; with an `Idempotency-Key`, asking twice gives the same run."""
    body = await read_json(request, limit=settings.max_body_bytes)
    wanted = decode(body, _CREATE_RUN)
    run_id = await object_id_for(
        request,
        idempotency,
        project=caller.project,
        kind=f"eval_run of {eval_id}",
        body=body,
        new_id=ids.new_eval_run_id(),
        look=eval_run_store.get,
    )
    source = bytes(_decode_posted(body).data_source)
    found = await eval_runs.create(wanted, source, eval_id=eval_id, access=caller.access, run_id=run_id)
    return _json(_public(request, found), status=201)


@get("/v1/evals/{eval_id:str}/runs", operation_id="getEvalRuns", opt={"response_body": json_page("EvalRun")})
async def list_runs(
    request: Request[Any, Any, Any],
    eval_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    eval_store: NamedDependency[EvalStore],
    eval_run_store: NamedDependency[EvalRunStore],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
    order: Order = "asc",
    status: FromQuery[RunStatus | None] = None,
) -> Response[bytes]:
    """List an eval's runs, oldest first unless `order` is `desc`; `status` keeps those that have it."""
    await eval_store.get(eval_id, project=caller.project)
    found, more = await eval_run_store.list(
        eval_id, status=status, after=after or None, limit=limit, newest_first=order == "desc"
    )
    return page_of([one.record.id for one in found], [_public(request, one) for one in found], has_more=more)


@get(_RUN, operation_id="getEvalRun", opt={"response_body": json_body("EvalRun")})
async def retrieve_run(
    request: Request[Any, Any, Any],
    eval_id: FromPath[str],
    run_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    eval_run_store: NamedDependency[EvalRunStore],
) -> Response[bytes]:
    """Look a run up, with what it has come to so far."""
    return _json(_public(request, await eval_run_store.find(run_id, eval_id=eval_id, project=caller.project)))


@post(f"{_RUN}/cancel", status_code=200, operation_id="cancelEvalRun", opt={"response_body": json_body("EvalRun")})
async def cancel_run(
    request: Request[Any, Any, Any],
    eval_id: FromPath[str],
    run_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    eval_runs: NamedDependency[EvalRuns],
) -> Response[bytes]:
    """Stop a run where it is; the results that it has stay."""
    return _json(_public(request, await eval_runs.cancel(run_id, eval_id=eval_id, project=caller.project)))


@post(_RUN, status_code=200, operation_id="cancelEvalRunAtItsUrl", opt={"response_body": json_body("EvalRun")})
async def cancel_run_at_its_url(
    request: Request[Any, Any, Any],
    eval_id: FromPath[str],
    run_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    eval_runs: NamedDependency[EvalRuns],
) -> Response[bytes]:
    """Stop a run, as older clients ask for it."""
    return _json(_public(request, await eval_runs.cancel(run_id, eval_id=eval_id, project=caller.project)))


@delete(_RUN, status_code=200, operation_id="deleteEvalRun")
async def delete_run(
    eval_id: FromPath[str],
    run_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    eval_runs: NamedDependency[EvalRuns],
) -> EvalRunDeleted:
    """Delete a run with the results of its rows; one under way is stopped."""
    await eval_runs.delete(run_id, eval_id=eval_id, project=caller.project)
    return EvalRunDeleted(run_id=run_id)


@get(f"{_RUN}/output_items", operation_id="getEvalRunOutputItems", opt={"response_body": json_page("OutputItem")})
async def list_output_items(
    eval_id: FromPath[str],
    run_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    eval_run_store: NamedDependency[EvalRunStore],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
    order: Order = "asc",
    status: FromQuery[Literal["pass", "fail", "error"] | None] = None,
) -> Response[bytes]:
    """List rows with their results, in the order of the data unless `order` is `desc`; `status` keeps some."""
    await eval_run_store.find_record(run_id, eval_id=eval_id, project=caller.project)
    mark = None if status is None else MARKS[status]
    return await items_of(
        eval_run_store, run_id, mark=mark, after=after or None, limit=limit, newest_first=order == "desc"
    )


@get(
    f"{_RUN}/output_items/{{output_item_id:str}}",
    operation_id="getEvalRunOutputItem",
    opt={"response_body": json_body("OutputItem")},
)
async def retrieve_output_item(
    eval_id: FromPath[str],
    run_id: FromPath[str],
    output_item_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    eval_run_store: NamedDependency[EvalRunStore],
) -> Response[bytes]:
    """Look up what came of a row."""
    await eval_run_store.find_record(run_id, eval_id=eval_id, project=caller.project)
    return json_response(await item_of(eval_run_store, run_id, output_item_id))


@get(f"{_RUN}/comparison", operation_id="compareEvalRuns")
async def compare_runs(
    eval_id: FromPath[str],
    run_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    eval_comparisons: NamedDependency[Comparisons],
    against: Annotated[str, QueryParameter(min_length=1, max_length=128)],
) -> EvalRunComparison:
    """Compare a run with another one of its eval: `better` is said only where chance is no explanation."""
    return await eval_comparisons.compare(run_id, against, eval_id=eval_id, project=caller.project)


def _public(request: Request[Any, Any, Any], found: Found) -> EvalRun:
    record = found.record
    url = f"{str(request.base_url).rstrip('/')}/v1/evals/{record.eval_id}/runs/{record.id}/output_items"
    return record.public(found.tally, found.source, report_url=url)


def _json(run: EvalRun, *, status: int = 200) -> Response[bytes]:
    answer = json_response(msgspec.json.encode(run))
    answer.status_code = status
    return answer


ROUTES = [
    create_eval, list_evals, retrieve_eval, update_eval, delete_eval, create_run, list_runs, retrieve_run, cancel_run,
    cancel_run_at_its_url, delete_run, list_output_items, retrieve_output_item, compare_runs,
]  # fmt: skip
