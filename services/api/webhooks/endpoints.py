"""A project's webhook endpoints: create, change, rotate the secret, try out."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
import structlog
from msgspec import UNSET
from msgspec.structs import replace

from services.api.webhooks import addresses
from services.api.webhooks.sender import Undeliverable, WebhookSender, new_secret
from shared import ids
from shared.errors import InvalidRequest
from shared.schemas.webhooks import (
    EVENT_TYPES,
    CreateWebhookEndpoint,
    UpdateWebhookEndpoint,
    WebhookEvent,
    WebhookSubject,
    WebhookTestResult,
)
from shared.store.webhooks import WebhookStore
from shared.webhook_records import WebhookRecord

_log = structlog.get_logger()

UNDELIVERABLE = "webhook_undeliverable"
_OLD_SECRET_S = 24 * 3600


class Webhooks:
    """Everything about endpoints that can be refused is refused here."""

    def __init__(self, store: WebhookStore, sender: WebhookSender) -> None:
        self._store = store
        self._sender = sender

    async def create(self, wanted: CreateWebhookEndpoint, *, project: str) -> WebhookRecord:
        """Raises InvalidRequest for event types that are not offered and for addresses that may not be asked."""
        now = int(time.time())
        record = WebhookRecord(
            id=ids.new_webhook_id(),
            project=project,
            name=wanted.name,
            url=await self._checked_url(wanted.url),
            event_types=_checked_types(wanted.event_types, "event_types"),
            secret=new_secret(),
            created_at=now,
            updated_at=now,
        )
        await self._store.create(record)
        _log.info("webhook.created", endpoint=record.id)
        return record

    async def update(self, endpoint_id: str, wanted: UpdateWebhookEndpoint, *, project: str) -> WebhookRecord:
        """Change what is given; a change to what is there already is none. Raises NotFound, InvalidRequest."""
        await self._store.get(endpoint_id, project=project)
        url = UNSET if wanted.url is UNSET else await self._checked_url(wanted.url)
        types = UNSET if wanted.event_types is UNSET else _checked_types(wanted.event_types, "event_types")

        def change(current: WebhookRecord) -> WebhookRecord:
            changed = replace(
                current,
                name=current.name if wanted.name is UNSET else wanted.name,
                url=current.url if url is UNSET else url,
                event_types=current.event_types if types is UNSET else types,
            )
            return current if changed == current else replace(changed, updated_at=int(time.time()))

        return await self._store.update(endpoint_id, change, project=project)

    async def rotate_secret(self, endpoint_id: str, *, keep_old: bool, project: str) -> WebhookRecord:
        """Sign with a new secret from now on, and with the old one for another day if it is kept."""
        fresh, now = new_secret(), int(time.time())

        def change(current: WebhookRecord) -> WebhookRecord:
            return replace(
                current,
                secret=fresh,
                old_secret=current.secret if keep_old else None,
                old_secret_until=now + _OLD_SECRET_S if keep_old else 0,
                updated_at=now,
            )

        return await self._store.update(endpoint_id, change, project=project)

    async def test(self, endpoint_id: str, event_type: str, *, project: str) -> WebhookTestResult:
        """Send a sample event, once. Raises InvalidRequest when no answer came."""
        endpoint = await self._store.get(endpoint_id, project=project)
        [event_type] = _checked_types([event_type], "event_type")
        families = {"batch": "batch_test", "fine_tuning": "ftjob-test", "selftune": "alias-test"}
        subject = families[event_type.partition(".")[0]]
        event = WebhookEvent(
            id=ids.new_event_id(), created_at=int(time.time()), type=event_type, data=WebhookSubject(id=subject)
        )
        try:
            status = await self._sender.send(endpoint, event_id=event.id, body=msgspec.json.encode(event))
        except Undeliverable as error:
            raise InvalidRequest(
                f"The webhook endpoint was not reached: {error}.".replace("..", "."), code=UNDELIVERABLE
            ) from error
        return WebhookTestResult(webhook_endpoint_id=endpoint.id, event_type=event_type, status_code=status)

    async def _checked_url(self, text: str) -> str:
        outgoing = self._sender.outgoing
        url = addresses.parse(text, allow_private=outgoing.allow_private)
        addresses.check_host(url, outgoing)
        if not outgoing.allow_private:
            await addresses.resolve(url, outgoing)
        return text


def _checked_types(wanted: Sequence[str], param: str) -> list[str]:
    for place, name in enumerate(wanted):
        if name not in EVENT_TYPES:
            where = param if param == "event_type" else f"{param}[{place}]"
            raise InvalidRequest(
                f"Invalid value for '{where}': '{name[:100]}'. This server tells of: {', '.join(EVENT_TYPES)}.",
                code="invalid_value",
                param=where,
            )
    return list(dict.fromkeys(wanted))
