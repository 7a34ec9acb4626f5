"""/v1/messages: Anthropic's form of the same generation, with its errors, for clients that speak it."""

from typing import Any

from litestar import Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from services.api.auth import KEY_HEADER
from services.api.bodies import decode, read_json
from services.api.documents import ANTHROPIC_ERROR, GENERATED, MESSAGE, OBJECT
from services.api.gateway.anthropic_errors import HANDLERS
from services.api.gateway.asking import ask
from services.api.gateway.forwarding import VIEW_DECODER, Gateway
from services.api.gateway.outgoing import Endpoint
from services.api.gateway.relay import Relay, Whole
from services.api.limits import read_prompt
from shared.settings import Settings

_OPTIONS: dict[str, Any] = {KEY_HEADER: "x-api-key", "request_body": MESSAGE, "error_body": ANTHROPIC_ERROR}


@post(
    "/v1/messages",
    status_code=200,
    operation_id="createMessage",
    opt={**_OPTIONS, "response_body": GENERATED},
    exception_handlers=HANDLERS,
)
async def create_message(
    request: Request[Any, Any, Any],
    settings: NamedDependency[Settings],
    gateway: NamedDependency[Gateway],
) -> ASGIApp:
    """Let a model continue a conversation in Anthropic's format."""
    body = await read_prompt(request, limit=settings.max_body_bytes)
    return await _forward("/v1/messages", request, gateway, body)


@post(
    "/v1/messages/count_tokens",
    status_code=200,
    operation_id="countMessageTokens",
    opt={**_OPTIONS, "response_body": OBJECT},
    exception_handlers=HANDLERS,
)
async def count_message_tokens(
    request: Request[Any, Any, Any],
    settings: NamedDependency[Settings],
    gateway: NamedDependency[Gateway],
) -> ASGIApp:
    """Count the tokens that such a conversation would put before the model."""
    body = await read_json(request, limit=settings.max_body_bytes)
    return await _forward("/v1/messages/count_tokens", request, gateway, body)


async def _forward(endpoint: Endpoint, request: Request[Any, Any, Any], gateway: Gateway, body: bytes) -> ASGIApp:
    answer = await ask(request, gateway, endpoint, body, decode(body, VIEW_DECODER))
    return Whole(answer) if isinstance(answer, bytes) else Relay(answer)


ROUTES = [create_message, count_message_tokens]
