"""/v1/chat/completions and /v1/completions: the gateway."""

from typing import Any

from litestar import Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from services.api.access import request_id_of
from services.api.bodies import decode
from services.api.documents import CHAT, COMPLETION, GENERATED
from services.api.gateway import VIEW_DECODER, Endpoint, Gateway
from services.api.limits import read_prompt
from services.api.relay import Relay, unless_gone
from shared.records import KeyRecord
from shared.settings import Settings


@post(
    "/v1/chat/completions",
    status_code=200,
    operation_id="createChatCompletion",
    opt={"request_body": CHAT, "response_body": GENERATED},
)
async def create_chat_completion(
    request: Request[Any, Any, Any],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    gateway: NamedDependency[Gateway],
) -> ASGIApp:
    """Let a base or fine-tuned model continue a conversation; `stream` sends it as server-sent events."""
    return await _forward("/v1/chat/completions", request, caller, settings, gateway)


@post(
    "/v1/completions",
    status_code=200,
    operation_id="createCompletion",
    opt={"request_body": COMPLETION, "response_body": GENERATED},
)
async def create_completion(
    request: Request[Any, Any, Any],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    gateway: NamedDependency[Gateway],
) -> ASGIApp:
    """Let a base or fine-tuned model continue a text; `stream` sends it as server-sent events."""
    return await _forward("/v1/completions", request, caller, settings, gateway)


async def _forward(
    endpoint: Endpoint, request: Request[Any, Any, Any], caller: KeyRecord, settings: Settings, gateway: Gateway
) -> ASGIApp:
    body = await read_prompt(request, limit=settings.max_body_bytes)
    view = decode(body, VIEW_DECODER)
    opening = gateway.open(
        endpoint, body, model=view.model, project=caller.project, request_id=request_id_of(request.scope)
    )
    return Relay(await unless_gone(opening, request.receive))


ROUTES = [create_chat_completion, create_completion]
