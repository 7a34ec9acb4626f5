"""/v1/fine_tuning/replays"""

from typing import Annotated, Any, TypeAlias

import msgspec
from litestar import Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from services.api.bodies import decode, read_json
from services.api.documents import json_body
from services.api.idempotency import object_id_for
from services.api.listing import page
from services.api.replays.creation import Replays
from services.api.replays.promotion import Promotion
from shared import ids
from shared.records import KeyRecord
from shared.replay_records import ReplayRecord
from shared.schemas.paging import Page
from shared.schemas.replays import CreateReplay, PromoteReplay, Replay, ReplayDeleted, ReplayPromotion
from shared.settings import Settings
from shared.store.flows import FlowStore
from shared.store.idempotency import IdempotencyStore

_CREATE = msgspec.json.Decoder(CreateReplay)
_PROMOTE = msgspec.json.Decoder(PromoteReplay)

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=100)]


@post(
    "/v1/fine_tuning/replays",
    status_code=200,
    operation_id="createReplay",
    opt={"request_body": json_body("CreateReplay")},
)
async def create_replay(
    request: Request[Any, Any, Any],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    idempotency: NamedDependency[IdempotencyStore],
    replays: NamedDependency[Replays],
    replay_store: NamedDependency[FlowStore[ReplayRecord]],
) -> Replay:
    """Train models again on another base, and compare each with its successor; with an `Idempotency-Key`, once."""
    body = await read_json(request, limit=settings.max_body_bytes)
    wanted = decode(body, _CREATE)
    replay_id = await object_id_for(
        request,
        idempotency,
        project=caller.project,
        kind="replay",
        body=body,
        new_id=ids.new_replay_id(),
        look=replay_store.get,
    )
    return await replays.shown(await replays.create(wanted, caller=caller, replay_id=replay_id))


@get("/v1/fine_tuning/replays", operation_id="listReplays")
async def list_replays(
    caller: NamedDependency[KeyRecord],
    replays: NamedDependency[Replays],
    replay_store: NamedDependency[FlowStore[ReplayRecord]],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
) -> Page[Replay]:
    """List replays, newest first."""
    records, more = await replay_store.list(caller.project, after=after or None, limit=limit)
    return page([await replays.shown(record) for record in records], has_more=more)


@get("/v1/fine_tuning/replays/{replay_id:str}", operation_id="retrieveReplay")
async def retrieve_replay(
    replay_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    replays: NamedDependency[Replays],
    replay_store: NamedDependency[FlowStore[ReplayRecord]],
) -> Replay:
    """Look a replay up: each model with its challenger, and which is better."""
    return await replays.shown(await replay_store.get(replay_id, project=caller.project))


@post("/v1/fine_tuning/replays/{replay_id:str}/cancel", status_code=200, operation_id="cancelReplay")
async def cancel_replay(
    replay_id: FromPath[str], caller: NamedDependency[KeyRecord], replays: NamedDependency[Replays]
) -> Replay:
    """Stop a replay with the jobs that it has under way; the models that there are stay."""
    return await replays.shown(await replays.cancel(replay_id, project=caller.project))


@post(
    "/v1/fine_tuning/replays/{replay_id:str}/promote",
    status_code=200,
    operation_id="promoteReplay",
    opt={"request_body": json_body("PromoteReplay")},
)
async def promote_replay(
    request: Request[Any, Any, Any],
    replay_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    replay_store: NamedDependency[FlowStore[ReplayRecord]],
    promotion: NamedDependency[Promotion],
) -> ReplayPromotion:
    """Point the aliases of champions to their challengers: where these are better, or of the models that are named."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _PROMOTE)
    record = await replay_store.get(replay_id, project=caller.project)
    return await promotion.promote(record, wanted, caller=caller)


@delete("/v1/fine_tuning/replays/{replay_id:str}", status_code=200, operation_id="deleteReplay")
async def delete_replay(
    replay_id: FromPath[str], caller: NamedDependency[KeyRecord], replays: NamedDependency[Replays]
) -> ReplayDeleted:
    """Forget a replay that has ended; its jobs, models and eval runs stay."""
    await replays.delete(replay_id, project=caller.project)
    return ReplayDeleted(id=replay_id)


ROUTES = [create_replay, list_replays, retrieve_replay, cancel_replay, delete_replay, promote_replay]
