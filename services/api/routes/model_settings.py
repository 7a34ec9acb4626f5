"""/v1/models/{model}/settings: what a fine-tuned model keeps with it."""

from typing import Any

import msgspec
from litestar import Request, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from services.api.bodies import decode, read_json
from services.api.documents import json_body
from services.api.model_paths import model_id
from services.api.model_settings.changes import ModelSettingsAdmin
from shared.records import KeyRecord
from shared.schemas.model_settings import ModelSettings, UpdateModelSettings
from shared.settings import Settings

_UPDATE = msgspec.json.Decoder(UpdateModelSettings)


@get("/v1/models/{model:str}/settings", operation_id="retrieveModelSettings")
async def retrieve_settings(
    model: FromPath[str],
    caller: NamedDependency[KeyRecord],
    model_settings: NamedDependency[ModelSettingsAdmin],
) -> ModelSettings:
    """Look up what the project has set for a fine-tuned model of its own."""
    return await model_settings.show(model_id(model), caller.access)


@post(
    "/v1/models/{model:str}/settings",
    status_code=200,
    operation_id="updateModelSettings",
    opt={"request_body": json_body("UpdateModelSettings")},
)
async def update_settings(
    request: Request[Any, Any, Any],
    model: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    model_settings: NamedDependency[ModelSettingsAdmin],
) -> ModelSettings:
    """Set what requests to a fine-tuned model get where they leave it open, who may use it, and whether it is pinned.

    What is left out stays as it is; null takes a setting away.
    """
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _UPDATE)
    return await model_settings.update(model_id(model), wanted, caller.access)


ROUTES = [retrieve_settings, update_settings]
