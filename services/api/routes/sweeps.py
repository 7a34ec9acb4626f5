"""/v1/fine_tuning/sweeps"""

from typing import Annotated, Any, TypeAlias

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from services.api.bodies import decode, read_json
from services.api.documents import SVG, json_body
from services.api.idempotency import object_id_for
from services.api.listing import page
from services.api.sweeps.creation import Sweeps
from services.api.sweeps.plot import plot
from shared import ids
from shared.records import KeyRecord
from shared.schemas.paging import Page
from shared.schemas.sweeps import CreateSweep, Sweep, SweepDeleted
from shared.settings import Settings
from shared.store.flows import FlowStore
from shared.store.idempotency import IdempotencyStore
from shared.sweep_records import SweepRecord

_CREATE = msgspec.json.Decoder(CreateSweep)

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=100)]


@post(
    "/v1/fine_tuning/sweeps",
    status_code=200,
    operation_id="createSweep",
    opt={"request_body": json_body("CreateSweep")},
)
async def create_sweep(
    request: Request[Any, Any, Any],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    idempotency: NamedDependency[IdempotencyStore],
    sweeps: NamedDependency[Sweeps],
    sweep_store: NamedDependency[FlowStore[SweepRecord]],
) -> Sweep:
    """Make a job of each combination of the lists, and rank what comes of them; with an `Idempotency-Key`, once."""
    body = await read_json(request, limit=settings.max_body_bytes)
    wanted = decode(body, _CREATE)
    sweep_id = await object_id_for(
        request,
        idempotency,
        project=caller.project,
        kind="sweep",
        body=body,
        new_id=ids.new_sweep_id(),
        look=sweep_store.get,
    )
    return await sweeps.shown(await sweeps.create(wanted, caller=caller, sweep_id=sweep_id))


@get("/v1/fine_tuning/sweeps", operation_id="listSweeps")
async def list_sweeps(
    caller: NamedDependency[KeyRecord],
    sweeps: NamedDependency[Sweeps],
    sweep_store: NamedDependency[FlowStore[SweepRecord]],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
) -> Page[Sweep]:
    """List sweeps, newest first."""
    records, more = await sweep_store.list(caller.project, after=after or None, limit=limit)
    return page([await sweeps.shown(record) for record in records], has_more=more)


@get("/v1/fine_tuning/sweeps/{sweep_id:str}", operation_id="retrieveSweep")
async def retrieve_sweep(
    sweep_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    sweeps: NamedDependency[Sweeps],
    sweep_store: NamedDependency[FlowStore[SweepRecord]],
) -> Sweep:
    """Look a sweep up: every run with its hyperparameters, its value and its rank."""
    return await sweeps.shown(await sweep_store.get(sweep_id, project=caller.project))


@post("/v1/fine_tuning/sweeps/{sweep_id:str}/cancel", status_code=200, operation_id="cancelSweep")
async def cancel_sweep(
    sweep_id: FromPath[str], caller: NamedDependency[KeyRecord], sweeps: NamedDependency[Sweeps]
) -> Sweep:
    """Stop a sweep with the jobs that it has under way; the models that there are stay."""
    return await sweeps.shown(await sweeps.cancel(sweep_id, project=caller.project))


@get("/v1/fine_tuning/sweeps/{sweep_id:str}/plot", operation_id="plotSweep", opt={"response_body": SVG})
async def plot_sweep(
    sweep_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    sweep_store: NamedDependency[FlowStore[SweepRecord]],
) -> Response[str]:
    """Draw a sweep as SVG: for each list a panel with its values and what the runs came to."""
    record = await sweep_store.get(sweep_id, project=caller.project)
    return Response(plot(record), media_type="image/svg+xml")


@delete("/v1/fine_tuning/sweeps/{sweep_id:str}", status_code=200, operation_id="deleteSweep")
async def delete_sweep(
    sweep_id: FromPath[str], caller: NamedDependency[KeyRecord], sweeps: NamedDependency[Sweeps]
) -> SweepDeleted:
    """Forget a sweep that has ended; its jobs, models and eval runs stay."""
    await sweeps.delete(sweep_id, project=caller.project)
    return SweepDeleted(id=sweep_id)


ROUTES = [create_sweep, list_sweeps, retrieve_sweep, cancel_sweep, delete_sweep, plot_sweep]
