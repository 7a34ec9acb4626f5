"""/v1/models/{model}/residency: on which inference servers a model is in memory."""

from typing import Any

import msgspec
from litestar import Request, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from services.api.bodies import decode, read_json
from services.api.documents import json_body
from services.api.gateway.residency import Residencies
from services.api.model_paths import model_id
from shared.records import KeyRecord
from shared.schemas.residency import BringIntoMemory, ModelResidency
from shared.settings import Settings

_BRING = msgspec.json.Decoder(BringIntoMemory)


@get("/v1/models/{model:str}/residency", operation_id="retrieveModelResidency")
async def retrieve_residency(
    model: FromPath[str], caller: NamedDependency[KeyRecord], residencies: NamedDependency[Residencies]
) -> ModelResidency:
    """Tell how a model stands on every inference server of its base: in memory, loading, refused and why."""
    return await residencies.show(model_id(model), caller.access)


@post(
    "/v1/models/{model:str}/residency",
    status_code=200,
    operation_id="bringModelIntoMemory",
    opt={"request_body": json_body("BringIntoMemory")},
)
async def bring_into_memory(
    request: Request[Any, Any, Any],
    model: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    residencies: NamedDependency[Residencies],
) -> ModelResidency:
    """Have a fine-tuned model loaded before its first request, or once more after it was quarantined.

    The answer does not wait for it; look again to see it warm.
    """
    decode(await read_json(request, limit=settings.max_body_bytes), _BRING)
    return await residencies.bring_into_memory(model_id(model), caller.access)


ROUTES = [retrieve_residency, bring_into_memory]
