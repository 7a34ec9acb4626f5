"""/v1/aliases/{alias}/promotions: models on their way through an alias's gate"""

from typing import Annotated, Any, TypeAlias

import msgspec
from litestar import Request, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from services.api.aliases.promotions import Promotions
from services.api.bodies import decode, read_json
from services.api.documents import json_body
from services.api.idempotency import object_id_for
from services.api.listing import cut
from shared import ids
from shared.promotion_records import PromotionRecord
from shared.records import KeyRecord
from shared.schemas.paging import Page
from shared.schemas.promotions import CreatePromotion, Promotion
from shared.settings import Settings
from shared.store.flows import FlowStore
from shared.store.idempotency import IdempotencyStore

_CREATE = msgspec.json.Decoder(CreatePromotion)
_PROMOTIONS = "/v1/aliases/{alias:str}/promotions"

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=100)]


@post(
    _PROMOTIONS,
    status_code=201,
    operation_id="createPromotion",
    opt={"request_body": json_body("CreatePromotion")},
)
async def create_promotion(
    request: Request[Any, Any, Any],
    alias: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    idempotency: NamedDependency[IdempotencyStore],
    promotions: NamedDependency[Promotions],
    promotion_store: NamedDependency[FlowStore[PromotionRecord]],
) -> Promotion:
    """Evaluate a model, and point the alias to it if it passes the alias's gate."""
    body = await read_json(request, limit=settings.max_body_bytes)
    wanted = decode(body, _CREATE)
    promotion_id = await object_id_for(
        request,
        idempotency,
        project=caller.project,
        kind=f"promotion {alias}",
        body=body,
        new_id=ids.new_promotion_id(),
        look=promotion_store.get,
    )
    return (await promotions.create(alias, wanted, caller=caller, promotion_id=promotion_id)).public()


@get(_PROMOTIONS, operation_id="listPromotions")
async def list_promotions(
    alias: FromPath[str],
    caller: NamedDependency[KeyRecord],
    promotions: NamedDependency[Promotions],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
) -> Page[Promotion]:
    """List promotions and rechecks of an alias, newest first."""
    found = [record.public() for record in await promotions.all(alias, project=caller.project)]
    return cut(found, after=after or None, limit=limit)


@get(f"{_PROMOTIONS}/{{promotion_id:str}}", operation_id="retrievePromotion")
async def retrieve_promotion(
    alias: FromPath[str],
    promotion_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    promotions: NamedDependency[Promotions],
) -> Promotion:
    """Look one up: what it waits for, or what it came to, with figures."""
    return (await promotions.get(alias, promotion_id, project=caller.project)).public()


@post(f"{_PROMOTIONS}/{{promotion_id:str}}/cancel", status_code=200, operation_id="cancelPromotion")
async def cancel_promotion(
    alias: FromPath[str],
    promotion_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    promotions: NamedDependency[Promotions],
) -> Promotion:
    """Stop one that has not ended; the alias stays where it is."""
    return (await promotions.cancel(alias, promotion_id, project=caller.project)).public()


ROUTES = [create_promotion, list_promotions, retrieve_promotion, cancel_promotion]
