"""/v1/chat/completions that were stored: list, look up, label, delete."""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from services.api.bodies import decode, read_json
from services.api.documents import METADATA, OBJECT, OBJECT_PAGE, json_body
from services.api.gateway.raw_pages import cut_items, json_response, page_of
from services.api.gateway.stored_chat import UpdateCompletion, message_items, public
from services.api.listing import metadata_filter
from shared.records import KeyRecord
from shared.schemas.paging import CompletionDeleted
from shared.settings import Settings
from shared.store.completions import CompletionStore

_UPDATE = msgspec.json.Decoder(UpdateCompletion)

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=100)]
Order: TypeAlias = FromQuery[Literal["asc", "desc"]]


@get(
    "/v1/chat/completions",
    operation_id="listChatCompletions",
    opt={"query": [METADATA], "response_body": OBJECT_PAGE},
)
async def list_completions(
    request: Request[Any, Any, Any],
    caller: NamedDependency[KeyRecord],
    completions: NamedDependency[CompletionStore],
    model: FromQuery[str | None] = None,
    after: FromQuery[str | None] = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> Response[bytes]:
    """List stored completions, oldest first unless `order` is `desc`; `metadata[key]=value` keeps those with it."""
    found, more = await completions.list(
        caller.project,
        model=model or None,
        metadata=metadata_filter(request.query_params),
        after=after or None,
        limit=limit,
        newest_first=order == "desc",
    )
    return page_of([one.id for one in found], [public(one) for one in found], has_more=more)


@get(
    "/v1/chat/completions/{completion_id:str}",
    operation_id="retrieveChatCompletion",
    opt={"response_body": OBJECT},
)
async def retrieve_completion(
    completion_id: FromPath[str], caller: NamedDependency[KeyRecord], completions: NamedDependency[CompletionStore]
) -> Response[bytes]:
    """Look a stored completion up."""
    return json_response(bytes(public(await completions.get(completion_id, project=caller.project))))


@post(
    "/v1/chat/completions/{completion_id:str}",
    status_code=200,
    operation_id="updateChatCompletion",
    opt={"request_body": json_body("UpdateCompletion"), "response_body": OBJECT},
)
async def update_completion(
    request: Request[Any, Any, Any],
    completion_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    completions: NamedDependency[CompletionStore],
) -> Response[bytes]:
    """Replace a stored completion's metadata."""
    change = decode(await read_json(request, limit=settings.max_body_bytes), _UPDATE)
    await completions.describe(completion_id, change.metadata or {}, project=caller.project)
    return json_response(bytes(public(await completions.get(completion_id, project=caller.project))))


@delete("/v1/chat/completions/{completion_id:str}", status_code=200, operation_id="deleteChatCompletion")
async def delete_completion(
    completion_id: FromPath[str], caller: NamedDependency[KeyRecord], completions: NamedDependency[CompletionStore]
) -> CompletionDeleted:
    """Delete a stored completion."""
    await completions.remove(completion_id, project=caller.project)
    return CompletionDeleted(id=completion_id)


@get(
    "/v1/chat/completions/{completion_id:str}/messages",
    operation_id="listChatCompletionMessages",
    opt={"response_body": OBJECT_PAGE},
)
async def list_messages(
    completion_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    completions: NamedDependency[CompletionStore],
    after: FromQuery[str | None] = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> Response[bytes]:
    """List the messages that a stored completion answers."""
    items = message_items(completion_id, await completions.messages(completion_id, project=caller.project))
    return cut_items(items, after=after or None, limit=limit, newest_first=order == "desc")


ROUTES = [list_completions, retrieve_completion, update_completion, delete_completion, list_messages]
