"""Webhook endpoints by project, and what is on its way to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from shared import keys
from shared.errors import Conflict, NotFound
from shared.store import index
from shared.store.client import Client
from shared.webhook_records import DeliveryRecord, WebhookRecord

MAX_ENDPOINTS = 100
"""Of one project; each of its events is written once for every endpoint."""

_decode = msgspec.json.Decoder(WebhookRecord).decode
_decode_delivery = msgspec.json.Decoder(DeliveryRecord).decode
_encode = msgspec.json.Encoder().encode


class WebhookStore:
    """Endpoints, newest first."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def create(self, record: WebhookRecord) -> None:
        """Raises Conflict when the project has MAX_ENDPOINTS already."""
        created = await self._client.script(
            "create_webhook",
            [keys.webhook(record.id), keys.webhooks(record.project), keys.SEQUENCE],
            [record.id, _encode(record), MAX_ENDPOINTS],
        )
        if not created:
            raise Conflict(f"The project has {MAX_ENDPOINTS} webhook endpoints, which is the limit; delete one first.")

    async def get(self, endpoint_id: str, *, project: str) -> WebhookRecord:
        """Raises NotFound when it is unknown or belongs to another project."""
        return (await self._read(endpoint_id, project))[0]

    async def find(self, endpoint_id: str) -> WebhookRecord | None:
        raw = await self._client.call("GET", keys.webhook(endpoint_id))
        return None if raw is None else _decode(raw)

    async def list(self, project: str, *, after: str | None, limit: int) -> tuple[Sequence[WebhookRecord], bool]:
        """Return a page, newest first, and whether there are more."""
        ids, more = await index.page(self._client, keys.webhooks(project), after=after, limit=limit)
        raws = await self._client.together([("GET", keys.webhook(one)) for one in ids]) if ids else []
        return [_decode(raw) for raw in raws if raw is not None], more

    async def subscribed(self, project: str, event_type: str) -> Sequence[WebhookRecord]:
        """List the project's endpoints that are to be told of such events."""
        records, _ = await self.list(project, after=None, limit=MAX_ENDPOINTS)
        return [record for record in records if event_type in record.event_types]

    async def update(
        self, endpoint_id: str, change: Callable[[WebhookRecord], WebhookRecord], *, project: str
    ) -> WebhookRecord:
        """Apply `change` to the newest record, retrying while others write. Raises NotFound."""
        while True:
            current, raw = await self._read(endpoint_id, project)
            changed = change(current)
            swapped = await self._client.script("swap_record", [keys.webhook(endpoint_id)], [raw, _encode(changed)])
            if swapped:
                return changed

    async def delete(self, endpoint_id: str, *, project: str) -> None:
        """Forget an endpoint; what is on its way to it is dropped. Raises NotFound."""
        await self._read(endpoint_id, project)
        await index.leave(self._client, keys.webhooks(project), [endpoint_id], delete=[keys.webhook(endpoint_id)])

    async def _read(self, endpoint_id: str, project: str) -> tuple[WebhookRecord, bytes]:
        raw = await self._client.call("GET", keys.webhook(endpoint_id))
        record = _decode(raw) if raw is not None else None
        if record is None or record.project != project:
            raise NotFound(f"No such webhook endpoint: {endpoint_id[:100]}", param="webhook_endpoint_id")
        return record, raw


class DeliveryStore:
    """The queue of deliveries, ordered by the time of their next try, and the outcomes that they come from.

    Claiming pushes the time forward, so that of several processes one has the item, and another takes it up when that
    one has died.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    async def claim_outcomes(self, *, limit: int, lease_s: float) -> list[str]:
        """Return members of `keys.OUTCOMES`, "{id} {status}", that nobody works on."""
        return await self._claim(keys.OUTCOMES, limit, lease_s)

    async def claim(self, *, limit: int, lease_s: float) -> list[str]:
        """Return ids of deliveries that are due, the longest due first."""
        return await self._claim(keys.WEBHOOK_QUEUE, limit, lease_s)

    async def expand(self, outcome: str, deliveries: Sequence[DeliveryRecord]) -> bool:
        """Replace an outcome by its deliveries, in one step; False when that was done before."""
        expanded = await self._client.script(
            "expand_outcome",
            [keys.OUTCOMES, keys.WEBHOOK_QUEUE, *(keys.webhook_delivery(delivery.id) for delivery in deliveries)],
            [outcome, *(part for delivery in deliveries for part in (delivery.id, _encode(delivery)))],
        )
        return bool(expanded)

    async def get(self, delivery_id: str) -> DeliveryRecord | None:
        raw = await self._client.call("GET", keys.webhook_delivery(delivery_id))
        return None if raw is None else _decode_delivery(raw)

    async def postpone(self, delivery_id: str, *, until: float) -> None:
        """Set when a delivery is due, unless it is over."""
        await self._client.call("ZADD", keys.WEBHOOK_QUEUE, "XX", until, delivery_id)

    async def retry(self, record: DeliveryRecord, *, at: float) -> None:
        """Note a failed attempt and the time of the next, unless the delivery is over."""
        await self._client.together(
            [
                ("SET", keys.webhook_delivery(record.id), _encode(record), "XX"),
                ("ZADD", keys.WEBHOOK_QUEUE, "XX", at, record.id),
            ]
        )

    async def finish(self, delivery_id: str) -> None:
        """Forget a delivery that has arrived or is given up."""
        await self._client.together(
            [("DEL", keys.webhook_delivery(delivery_id)), ("ZREM", keys.WEBHOOK_QUEUE, delivery_id)]
        )

    async def _claim(self, key: str, limit: int, lease_s: float) -> list[str]:
        found = await self._client.script("claim_due", [key], [lease_s, limit])
        return [member.decode() for member in found]
