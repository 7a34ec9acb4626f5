"""/v1/distillations"""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from litestar import Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from services.api.bodies import decode, read_json
from services.api.distillation.creation import Distillations
from services.api.documents import json_body
from services.api.idempotency import object_id_for
from services.api.listing import page
from shared import ids
from shared.distillation_records import DistillationRecord
from shared.records import KeyRecord
from shared.schemas.distillations import CreateDistillation, Distillation, DistillationDeleted
from shared.schemas.paging import Page
from shared.settings import Settings
from shared.store.flows import FlowStore
from shared.store.idempotency import IdempotencyStore

_CREATE = msgspec.json.Decoder(CreateDistillation)

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=100)]
Order: TypeAlias = FromQuery[Literal["asc", "desc"]]


@post(
    "/v1/distillations",
    status_code=201,
    operation_id="createDistillation",
    opt={"request_body": json_body("CreateDistillation")},
)
async def create_distillation(
    request: Request[Any, Any, Any],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    idempotency: NamedDependency[IdempotencyStore],
    distillations: NamedDependency[Distillations],
    distillation_store: NamedDependency[FlowStore[DistillationRecord]],
) -> Distillation:
    """Make a student of a teacher's answers; with an `Idempotency-Key`, asking twice gives the same distillation."""
    body = await read_json(request, limit=settings.max_body_bytes)
    wanted = decode(body, _CREATE)
    flow_id = await object_id_for(
        request,
        idempotency,
        project=caller.project,
        kind="distillation",
        body=body,
        new_id=ids.new_distillation_id(),
        look=distillation_store.get,
    )
    return (await distillations.create(wanted, access=caller.access, flow_id=flow_id)).public()


@get("/v1/distillations", operation_id="listDistillations")
async def list_distillations(
    caller: NamedDependency[KeyRecord],
    distillation_store: NamedDependency[FlowStore[DistillationRecord]],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
    order: Order = "desc",
) -> Page[Distillation]:
    """List distillations, newest first unless `order` is `asc`."""
    records, more = await distillation_store.list(
        caller.project, after=after or None, limit=limit, newest_first=order == "desc"
    )
    return page([record.public() for record in records], has_more=more)


@get("/v1/distillations/{distillation_id:str}", operation_id="retrieveDistillation")
async def retrieve_distillation(
    distillation_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    distillation_store: NamedDependency[FlowStore[DistillationRecord]],
) -> Distillation:
    """Look a distillation up, with the stage that it is at and what it has made so far."""
    return (await distillation_store.get(distillation_id, project=caller.project)).public()


@post("/v1/distillations/{distillation_id:str}/cancel", status_code=200, operation_id="cancelDistillation")
async def cancel_distillation(
    distillation_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    distillations: NamedDependency[Distillations],
) -> Distillation:
    """Stop a distillation where it is, with its job and its runs; what it has made stays."""
    return (await distillations.cancel(distillation_id, project=caller.project)).public()


@delete("/v1/distillations/{distillation_id:str}", status_code=200, operation_id="deleteDistillation")
async def delete_distillation(
    distillation_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    distillations: NamedDependency[Distillations],
) -> DistillationDeleted:
    """Forget a distillation that has ended; its files, job, model and evals stay."""
    await distillations.delete(distillation_id, project=caller.project)
    return DistillationDeleted(id=distillation_id)


ROUTES = [create_distillation, list_distillations, retrieve_distillation, cancel_distillation, delete_distillation]
