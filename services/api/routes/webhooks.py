"""/v1/webhook_endpoints and /v1/webhook_event_types"""

from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from services.api.audit import trail
from services.api.bodies import decode, read_json
from services.api.documents import json_body
from services.api.listing import page
from services.api.webhooks.endpoints import UNDELIVERABLE, Webhooks
from shared.errors import InvalidRequest
from shared.records import KeyRecord
from shared.schemas.paging import Page
from shared.schemas.webhooks import (
    EVENT_TYPES,
    CreateWebhookEndpoint,
    DeletedWebhookEndpoint,
    RotateWebhookSecret,
    TestWebhookEndpoint,
    UpdateWebhookEndpoint,
    WebhookEndpoint,
    WebhookEndpointWithSecret,
    WebhookEventTypeList,
    WebhookTestResult,
)
from shared.settings import Settings
from shared.store.webhooks import WebhookStore

_CREATE = msgspec.json.Decoder(CreateWebhookEndpoint)
_UPDATE = msgspec.json.Decoder(UpdateWebhookEndpoint)
_ROTATE = msgspec.json.Decoder(RotateWebhookSecret)
_TEST = msgspec.json.Decoder(TestWebhookEndpoint)


@post(
    "/v1/webhook_endpoints",
    status_code=200,
    operation_id="createWebhookEndpoint",
    opt={"request_body": json_body("CreateWebhookEndpoint")},
)
async def create_endpoint(
    request: Request[Any, Any, Any],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    webhooks: NamedDependency[Webhooks],
) -> WebhookEndpointWithSecret:
    """Have a URL told of the ends of jobs and batches; the answer holds the secret that signs."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _CREATE)
    return (await webhooks.create(wanted, project=caller.project)).with_secret()


@get("/v1/webhook_endpoints", operation_id="listWebhookEndpoints")
async def list_endpoints(
    caller: NamedDependency[KeyRecord],
    webhook_store: NamedDependency[WebhookStore],
    limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
    after: FromQuery[str | None] = None,
) -> Page[WebhookEndpoint]:
    """List webhook endpoints, newest first."""
    records, more = await webhook_store.list(caller.project, after=after or None, limit=limit)
    return page([record.public() for record in records], has_more=more)


@get("/v1/webhook_endpoints/{webhook_endpoint_id:str}", operation_id="retrieveWebhookEndpoint")
async def retrieve_endpoint(
    webhook_endpoint_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    webhook_store: NamedDependency[WebhookStore],
) -> WebhookEndpoint:
    """Look a webhook endpoint up."""
    return (await webhook_store.get(webhook_endpoint_id, project=caller.project)).public()


@post(
    "/v1/webhook_endpoints/{webhook_endpoint_id:str}",
    status_code=200,
    operation_id="updateWebhookEndpoint",
    opt={"request_body": json_body("UpdateWebhookEndpoint")},
)
async def update_endpoint(
    request: Request[Any, Any, Any],
    webhook_endpoint_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    webhooks: NamedDependency[Webhooks],
) -> WebhookEndpoint:
    """Change a webhook endpoint's name, URL or event types; what is left out stays."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _UPDATE)
    return (await webhooks.update(webhook_endpoint_id, wanted, project=caller.project)).public()


@delete("/v1/webhook_endpoints/{webhook_endpoint_id:str}", status_code=200, operation_id="deleteWebhookEndpoint")
async def delete_endpoint(
    webhook_endpoint_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    webhook_store: NamedDependency[WebhookStore],
) -> DeletedWebhookEndpoint:
    """Delete a webhook endpoint, and what is on its way to it."""
    await webhook_store.delete(webhook_endpoint_id, project=caller.project)
    return DeletedWebhookEndpoint(id=webhook_endpoint_id)


@post(
    "/v1/webhook_endpoints/{webhook_endpoint_id:str}/rotate_secret",
    status_code=200,
    operation_id="rotateWebhookEndpointSecret",
    opt={"request_body": {**json_body("RotateWebhookSecret"), "required": False}},
)
async def rotate_secret(
    request: Request[Any, Any, Any],
    webhook_endpoint_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    webhooks: NamedDependency[Webhooks],
) -> WebhookEndpointWithSecret:
    """Sign with a new secret, which the answer holds; the old one may sign as well for a day."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes) or b"{}", _ROTATE)
    keep_old = wanted.keep_old_secret_active_for_24_hours
    rotated = await webhooks.rotate_secret(webhook_endpoint_id, keep_old=keep_old, project=caller.project)
    return rotated.with_secret()


@post(
    "/v1/webhook_endpoints/{webhook_endpoint_id:str}/test",
    status_code=200,
    operation_id="testWebhookEndpoint",
    opt={"request_body": json_body("TestWebhookEndpoint")},
)
async def test_endpoint(
    request: Request[Any, Any, Any],
    webhook_endpoint_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    webhooks: NamedDependency[Webhooks],
) -> WebhookTestResult:
    """Send a sample event and tell what the endpoint answered."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _TEST)
    try:
        return await webhooks.test(webhook_endpoint_id, wanted.event_type, project=caller.project)
    except InvalidRequest as error:
        if error.code == UNDELIVERABLE:  # what the other side has got nobody knows
            trail.tell(request.scope["state"], "unknown")
        raise


@get("/v1/webhook_event_types", operation_id="listWebhookEventTypes")
async def list_event_types() -> WebhookEventTypeList:
    """List the event types that webhook endpoints can be told of."""
    return WebhookEventTypeList(data=list(EVENT_TYPES))


ROUTES = [
    create_endpoint, list_endpoints, retrieve_endpoint, update_endpoint, delete_endpoint, rotate_secret, test_endpoint,
    list_event_types,
]  # fmt: skip
