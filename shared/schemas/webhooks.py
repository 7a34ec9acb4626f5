"""Webhook endpoints, and the events that are delivered to them, in OpenAI's shapes."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

EVENT_TYPES = (
    "batch.completed", "batch.failed", "batch.expired", "batch.cancelled",
    "fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled",
    "selftune.alias.drifted", "selftune.alias.rolled_back",
)  # fmt: skip
"""What this server has to tell."""

EventType: TypeAlias = Annotated[str, Meta(extra_json_schema={"enum": list(EVENT_TYPES)})]
EventTypes: TypeAlias = Annotated[
    list[EventType], Meta(min_length=1, max_length=64, description="All the event types to be told of.")
]
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256, description="A name of yours.")]
Url: TypeAlias = Annotated[
    str, Meta(min_length=1, max_length=2048, description="HTTPS address, in the public network, that takes deliveries.")
]


class CreateWebhookEndpoint(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/webhook_endpoints."""

    name: Name
    url: Url
    event_types: EventTypes


class UpdateWebhookEndpoint(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/webhook_endpoints/{id}; what is left out stays."""

    name: Name | UnsetType = UNSET
    url: Url | UnsetType = UNSET
    event_types: EventTypes | UnsetType = UNSET


class RotateWebhookSecret(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/webhook_endpoints/{id}/rotate_secret."""

    keep_old_secret_active_for_24_hours: Annotated[
        bool, Meta(description="Sign with both secrets for a day; else the old one is void at once.")
    ] = False


class TestWebhookEndpoint(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/webhook_endpoints/{id}/test."""

    event_type: EventType


class WebhookEndpoint(Struct, frozen=True, kw_only=True):
    """An endpoint as the API shows it: its secret is hinted at."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    updated_at: Annotated[int, Meta(description="Unix time of the last change of configuration or secret.")]
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str


class WebhookEndpointWithSecret(WebhookEndpoint, frozen=True, kw_only=True):
    """Answer to creating an endpoint and to rotating its secret: the only places where the secret is shown."""

    signing_secret: str


class DeletedWebhookEndpoint(Struct, frozen=True, kw_only=True):
    """Answer to a deletion."""

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class WebhookTestResult(Struct, frozen=True, kw_only=True):
    """What the endpoint answered to a sample event; `success` means that it answered."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True] = True


class WebhookEventTypeList(Struct, frozen=True, kw_only=True):
    """The event types that endpoints can be told of."""

    object: Literal["list"] = "list"
    data: list[str]


class WebhookSubject(Struct, frozen=True, kw_only=True):
    """What an event is about."""

    id: str


class WebhookEvent(Struct, frozen=True, kw_only=True):
    """Body of a delivery."""

    id: str
    object: Literal["event"] = "event"
    created_at: int
    type: str
    data: WebhookSubject
