"""/v1/responses: OpenAI's newer form of the same generation, with conversations kept on the server."""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.types import ASGIApp

from services.api.bodies import decode, read_json
from services.api.documents import GENERATED_RESPONSE, OBJECT, OBJECT_PAGE, RESPONSE
from services.api.gateway.asking import ask
from services.api.gateway.forwarding import Gateway
from services.api.gateway.raw_pages import cut_items, json_response
from services.api.gateway.relay import Relay, Whole
from services.api.gateway.responses import ResponseView, Turn
from services.api.gateway.upstream_errors import unreadable
from services.api.limits import read_prompt
from shared.errors import InvalidRequest
from shared.records import KeyRecord
from shared.schemas.paging import ResponseDeleted
from shared.schemas.responses import InputTokens, TokenCount
from shared.settings import Settings
from shared.store.responses import ResponseStore

_VIEW = msgspec.json.Decoder(ResponseView)
_TOKENS = msgspec.json.Decoder(InputTokens)

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=100)]


@post(
    "/v1/responses",
    status_code=200,
    operation_id="createResponse",
    opt={"request_body": RESPONSE, "response_body": GENERATED_RESPONSE},
)
async def create_response(
    request: Request[Any, Any, Any],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    gateway: NamedDependency[Gateway],
    responses: NamedDependency[ResponseStore],
) -> ASGIApp:
    """Let a model answer; the response is kept unless `store` is false, and a later one can go on from it."""
    body = await read_prompt(request, limit=settings.max_body_bytes)
    view = decode(body, _VIEW)
    turn = Turn(responses, body, view, project=caller.project)
    await turn.check_room()
    answer = await ask(request, gateway, "/v1/responses", await turn.upstream_body(), view)
    if not isinstance(answer, bytes):
        return Relay(answer, turn)
    response = turn.mended(answer)
    if turn.kept:
        await turn.keep(response)
    return Whole(response)


@post(
    "/v1/responses/input_tokens",
    status_code=200,
    operation_id="countResponseInputTokens",
    opt={"request_body": RESPONSE},
)
async def count_input_tokens(
    request: Request[Any, Any, Any],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    gateway: NamedDependency[Gateway],
    responses: NamedDependency[ResponseStore],
) -> TokenCount:
    """Count the tokens that a request would put before the model, its instructions, tools and conversation included."""
    body = await read_json(request, limit=settings.max_body_bytes)
    view = decode(body, _VIEW)
    asked = await Turn(responses, body, view, project=caller.project).upstream_body(without={"stream"})
    rendered = await ask(request, gateway, "/v1/responses/render", asked, view)
    assert isinstance(rendered, bytes)
    try:
        return TokenCount(input_tokens=len(_TOKENS.decode(rendered).token_ids))
    except msgspec.MsgspecError as error:
        raise unreadable() from error


@post("/v1/responses/compact", status_code=200, operation_id="compactResponse", opt={"response_body": OBJECT})
async def compact_response() -> Response[bytes]:
    """Refused: a conversation's compact form can only be read by OpenAI's own models."""
    raise InvalidRequest(
        "This server does not compact conversations; send a shorter 'input' instead.", code="unsupported_endpoint"
    )


@get("/v1/responses/{response_id:str}", operation_id="retrieveResponse", opt={"response_body": OBJECT})
async def retrieve_response(
    response_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    responses: NamedDependency[ResponseStore],
    stream: FromQuery[bool | None] = None,
) -> Response[bytes]:
    """Look a stored response up."""
    found = await responses.get(response_id, project=caller.project)
    if stream:
        raise InvalidRequest(
            "Only background responses can be streamed again, and this server has none; leave 'stream' out.",
            code="unsupported_parameter",
            param="stream",
        )
    return json_response(found.body)


@delete("/v1/responses/{response_id:str}", status_code=200, operation_id="deleteResponse")
async def delete_response(
    response_id: FromPath[str], caller: NamedDependency[KeyRecord], responses: NamedDependency[ResponseStore]
) -> ResponseDeleted:
    """Delete a stored response; those that go on from it stay, but nothing new can go on from them."""
    await responses.remove(response_id, project=caller.project)
    return ResponseDeleted(id=response_id)


@post(
    "/v1/responses/{response_id:str}/cancel",
    status_code=200,
    operation_id="cancelResponse",
    opt={"response_body": OBJECT},
)
async def cancel_response(
    response_id: FromPath[str], caller: NamedDependency[KeyRecord], responses: NamedDependency[ResponseStore]
) -> Response[bytes]:
    """Refused for every response: only background ones can be cancelled, and this server has none."""
    await responses.get(response_id, project=caller.project)
    raise InvalidRequest(
        f"Response '{response_id}' cannot be cancelled: only responses with 'background' set can.", param="response_id"
    )


@get(
    "/v1/responses/{response_id:str}/input_items",
    operation_id="listResponseInputItems",
    opt={"response_body": OBJECT_PAGE},
)
async def list_input_items(
    response_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    responses: NamedDependency[ResponseStore],
    after: FromQuery[str | None] = None,
    limit: Limit = 20,
    order: FromQuery[Literal["asc", "desc"]] = "desc",
) -> Response[bytes]:
    """List the input items of a stored response's request, last first unless `order` is `asc`."""
    found = await responses.get(response_id, project=caller.project)
    items = msgspec.json.decode(found.items)
    return cut_items(items, after=after or None, limit=limit, newest_first=order == "desc")


ROUTES = [
    create_response, count_input_tokens, compact_response, retrieve_response, delete_response, cancel_response,
    list_input_items,
]  # fmt: skip
