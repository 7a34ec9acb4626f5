"""Webhook endpoints and deliveries as they are stored; reading is tolerant, as in shared/records.py."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import asdict

from shared.schemas.webhooks import WebhookEndpoint, WebhookEndpointWithSecret


class WebhookRecord(Struct, frozen=True, kw_only=True):
    """An address that is told of a project's events."""

    id: str
    project: str
    name: str
    url: str
    event_types: list[str]
    secret: str
    """`whsec_` and base64, as Standard Webhooks has it; it must sign, so it is stored as it is."""
    old_secret: str | None = None
    old_secret_until: int = 0
    """Unix time until which `old_secret` signs as well."""
    created_at: int
    updated_at: int

    def secrets(self, now: float) -> list[str]:
        """Return the secrets that sign at this moment, the current one first."""
        old = [self.old_secret] if self.old_secret is not None and now < self.old_secret_until else []
        return [self.secret, *old]

    def public(self) -> WebhookEndpoint:
        return WebhookEndpoint(
            id=self.id,
            created_at=self.created_at,
            updated_at=self.updated_at,
            name=self.name,
            url=self.url,
            event_types=self.event_types,
            signing_secret_hint=f"whsec_...{self.secret[-4:]}",
        )

    def with_secret(self) -> WebhookEndpointWithSecret:
        return WebhookEndpointWithSecret(**asdict(self.public()), signing_secret=self.secret)


class DeliveryRecord(Struct, frozen=True, kw_only=True):
    """One event on its way to one endpoint; kept until it has arrived or was given up."""

    id: str
    endpoint_id: str
    event_id: str
    """The `webhook-id` of every try."""
    body: str
    created_at: float
    attempts: int = 0
