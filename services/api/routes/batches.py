"""/v1/batches"""

from typing import Annotated, Any

import msgspec
from litestar import Request, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from services.api.batches.creation import Batches
from services.api.bodies import decode, read_json
from services.api.documents import json_body
from services.api.idempotency import object_id_for
from services.api.listing import page
from shared import ids
from shared.records import KeyRecord
from shared.schemas.batches import Batch, CreateBatch
from shared.schemas.paging import Page
from shared.settings import Settings
from shared.store.batches import BatchStore
from shared.store.idempotency import IdempotencyStore

_CREATE = msgspec.json.Decoder(CreateBatch)


@post("/v1/batches", status_code=200, operation_id="createBatch", opt={"request_body": json_body("CreateBatch")})
async def create_batch(
    request: Request[Any, Any, Any],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    idempotency: NamedDependency[IdempotencyStore],
    batches: NamedDependency[Batches],
    batch_store: NamedDependency[BatchStore],
) -> Batch:
    """Have a file of requests answered; with an `Idempotency-Key` header, asking twice gives the same batch."""
    body = await read_json(request, limit=settings.max_body_bytes)
    wanted = decode(body, _CREATE)
    batch_id = await object_id_for(
        request,
        idempotency,
        project=caller.project,
        kind="batch",
        body=body,
        new_id=ids.new_batch_id(),
        look=batch_store.get,
    )
    return (await batches.create(wanted, access=caller.access, batch_id=batch_id)).public()


@get("/v1/batches", operation_id="listBatches")
async def list_batches(
    caller: NamedDependency[KeyRecord],
    batch_store: NamedDependency[BatchStore],
    limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
    after: FromQuery[str | None] = None,
) -> Page[Batch]:
    """List batches, newest first."""
    records, more = await batch_store.list(caller.project, after=after or None, limit=limit)
    return page([record.public() for record in records], has_more=more)


@get("/v1/batches/{batch_id:str}", operation_id="retrieveBatch")
async def retrieve_batch(
    batch_id: FromPath[str], caller: NamedDependency[KeyRecord], batch_store: NamedDependency[BatchStore]
) -> Batch:
    """Look a batch up."""
    return (await batch_store.get(batch_id, project=caller.project)).public()


@post("/v1/batches/{batch_id:str}/cancel", status_code=200, operation_id="cancelBatch")
async def cancel_batch(
    batch_id: FromPath[str], caller: NamedDependency[KeyRecord], batches: NamedDependency[Batches]
) -> Batch:
    """Stop a batch; what has been answered is in its files when it is `cancelled`, some seconds later."""
    return (await batches.cancel(batch_id, project=caller.project)).public()


ROUTES = [create_batch, list_batches, retrieve_batch, cancel_batch]
