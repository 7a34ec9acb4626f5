"""Chat completions, completions and embeddings; /v1/responses and /v1/messages have modules of their own."""

from typing import Any

import msgspec
from litestar import Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from services.api.access import request_id_of
from services.api.bodies import decode
from services.api.documents import CHAT, COMPLETION, EMBEDDING, GENERATED, OBJECT
from services.api.gateway.asking import ask
from services.api.gateway.forwarding import VIEW_DECODER, Gateway, View
from services.api.gateway.mending import mended
from services.api.gateway.outgoing import Endpoint
from services.api.gateway.relay import Relay, Whole
from services.api.gateway.stored_chat import ChatView, StoredChat
from services.api.limits import read_prompt
from shared.records import KeyRecord
from shared.settings import Settings
from shared.store.completions import CompletionStore

_CHAT = msgspec.json.Decoder(ChatView)


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
    completions: NamedDependency[CompletionStore],
) -> ASGIApp:
    """Let a model continue a conversation; `stream` sends it as server-sent events, `store` keeps it."""
    body = await read_prompt(request, limit=settings.max_body_bytes)
    view = decode(body, _CHAT)
    if not view.store:
        return await _forward("/v1/chat/completions", request, gateway, body, view)
    await completions.check_room(caller.project, len(body))
    request_id = request_id_of(request.scope)
    stored = StoredChat(completions, body, view, project=caller.project, request_id=request_id)
    answer = await ask(request, gateway, "/v1/chat/completions", body, view, on_sent=stored.asked)
    if not isinstance(answer, bytes):
        return Relay(answer, stored)
    await stored.keep(answer)
    return Whole(mended(answer))


@post(
    "/v1/completions",
    status_code=200,
    operation_id="createCompletion",
    opt={"request_body": COMPLETION, "response_body": GENERATED},
)
async def create_completion(
    request: Request[Any, Any, Any],
    settings: NamedDependency[Settings],
    gateway: NamedDependency[Gateway],
) -> ASGIApp:
    """Let a base or fine-tuned model continue a text; `stream` sends it as server-sent events."""
    body = await read_prompt(request, limit=settings.max_body_bytes)
    return await _forward("/v1/completions", request, gateway, body, decode(body, VIEW_DECODER))


@post(
    "/v1/embeddings",
    status_code=200,
    operation_id="createEmbedding",
    opt={"request_body": EMBEDDING, "response_body": OBJECT},
)
async def create_embedding(
    request: Request[Any, Any, Any],
    settings: NamedDependency[Settings],
    gateway: NamedDependency[Gateway],
) -> ASGIApp:
    """Turn texts into vectors, on a base that was made for it; others refuse with `unsupported_endpoint`."""
    body = await read_prompt(request, limit=settings.max_body_bytes)
    return await _forward("/v1/embeddings", request, gateway, body, decode(body, VIEW_DECODER))


async def _forward(
    endpoint: Endpoint, request: Request[Any, Any, Any], gateway: Gateway, body: bytes, view: View
) -> ASGIApp:
    answer = await ask(request, gateway, endpoint, body, view)
    return Whole(mended(answer)) if isinstance(answer, bytes) else Relay(answer)


ROUTES = [create_chat_completion, create_completion, create_embedding]
