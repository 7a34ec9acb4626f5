"""From ended jobs and batches, and what happened to aliases, to deliveries, and from these to endpoints: a task beside
the requests.

At least once: an outcome is replaced by its deliveries in one step, and a delivery leaves the queue only when it has
arrived, was refused for good (410), or is too old. Whoever dies in between leaves it due again.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from msgspec.structs import replace

from services.api import metrics
from services.api.background import Background
from services.api.draining import pause
from services.api.webhooks.sender import TIMEOUT_S, Undeliverable, WebhookSender
from shared.errors import StoreUnavailable
from shared.schemas.webhooks import WebhookEvent, WebhookSubject
from shared.store.batches import BatchStore
from shared.store.jobs import JobStore
from shared.store.webhooks import DeliveryStore, WebhookStore
from shared.webhook_records import DeliveryRecord, WebhookRecord

_log = structlog.get_logger()

_POLL_S = 0.5
_BUSY_POLL_S = 0.05
_LEASE_S = TIMEOUT_S + 5
_PATIENCE_S = 5.0
"""How long deliveries under way may go on when the server stops; cut off, they are tried again later."""

_AT_ONCE = 64
_AT_ONCE_EACH = 4
"""Deliveries under way in this process, in all and to one endpoint: a slow one leaves room for the others."""

_RETRIES = (1, 6, 24, 120, 720, 2160)
_LATER_RETRIES = 4320
_END = 51840
"""In units of the base, by default 5 s: 5 s, 30 s, 2 min, 10 min, 1 h, 3 h, then every 6 h, up to 72 h."""


@dataclass(frozen=True)
class Subject:
    """Whose the ended object is, and when it ended (Unix time); `shown_as` is its id where that is another."""

    project: str
    ended_at: int
    shown_as: str = ""


@dataclass(frozen=True)
class Family:
    """A kind of object that ends: the first part of its event types, and how one is looked up."""

    name: str
    look_up: Callable[[str], Awaitable[Subject]]


def families_of(jobs: JobStore, batches: BatchStore) -> dict[str, Family]:
    """Return what can end, by the prefix of its id."""
    return {
        "ftjob-": Family("fine_tuning.job", jobs_ending(jobs)),
        "batch_": Family("batch", batches_ending(batches)),
        "alias/": Family("selftune.alias", alias_event),
    }


def jobs_ending(jobs: JobStore) -> Callable[[str], Awaitable[Subject]]:
    """Look ended fine-tuning jobs up."""

    async def look_up(job_id: str) -> Subject:
        record = await jobs.get(job_id)
        return Subject(record.project, record.finished_at or record.created_at)

    return look_up


def batches_ending(batches: BatchStore) -> Callable[[str], Awaitable[Subject]]:
    """Look ended batches up."""

    async def look_up(batch_id: str) -> Subject:
        record = await batches.get(batch_id)
        return Subject(record.project, record.ended_at or record.created_at)

    return look_up


async def alias_event(event_id: str) -> Subject:
    """Read what an event of an alias says of itself, see shared.store.aliases.alias_event_id."""
    _, project, at, _, name = event_id.split("/")
    return Subject(project, int(at), shown_as=name)


def retry_delay_s(attempts: int, base_s: float) -> float:
    """Return how long to wait after so many failed attempts, 1 or more."""
    return base_s * (_RETRIES[attempts - 1] if attempts <= len(_RETRIES) else _LATER_RETRIES)


def event_id_of(outcome: str) -> str:
    """Return the event's id: the same for the same outcome, whoever tells of it and how often."""
    return f"evt_{hashlib.sha256(outcome.encode()).hexdigest()[:32]}"


class Dispatcher:
    """Runs until `drain` is set or it is closed. `families` is keyed by the prefix of their objects' ids."""

    def __init__(
        self,
        webhooks: WebhookStore,
        deliveries: DeliveryStore,
        sender: WebhookSender,
        families: dict[str, Family],
        *,
        retry_base_s: float,
        drain: asyncio.Event,
    ) -> None:
        self._webhooks = webhooks
        self._deliveries = deliveries
        self._sender = sender
        self._families = families
        self._retry_base_s = retry_base_s
        self._drain = drain
        self._background = Background()
        self._running: Counter[str] = Counter()
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._loop = asyncio.create_task(self._run())
        self._loop.add_done_callback(_report)

    async def close(self) -> None:
        """Take nothing more, wait a little for what is under way, and cut off the rest."""
        self._drain.set()
        if self._loop is not None:
            await asyncio.wait({self._loop}, timeout=_PATIENCE_S)
            self._loop.cancel()
        await self._background.close(patience_s=_PATIENCE_S)
        await self._sender.close()

    async def _run(self) -> None:
        while not self._drain.is_set():
            try:
                busy = await self._round()
            except StoreUnavailable:
                _log.warning("webhooks.store_away")
                busy = False
            await pause(self._drain, _BUSY_POLL_S if busy else _POLL_S)

    async def _round(self) -> bool:
        """Take up what is due; True when there was something."""
        room = _AT_ONCE - len(self._background)
        if room <= 0:
            return True
        outcomes = await self._deliveries.claim_outcomes(limit=room, lease_s=_LEASE_S)
        for outcome in outcomes:
            self._spawn(self._expand(outcome))
        due = await self._deliveries.claim(limit=room, lease_s=_LEASE_S)
        for delivery_id in due:
            await self._take_up(delivery_id)
        return bool(outcomes or due)

    async def _take_up(self, delivery_id: str) -> None:
        endpoint_id = delivery_id.rpartition(".")[2]
        if self._running[endpoint_id] >= _AT_ONCE_EACH:
            await self._deliveries.postpone(delivery_id, until=time.time() + 1)
            return
        self._running[endpoint_id] += 1
        self._spawn(self._deliver(delivery_id, endpoint_id))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._background.start(work).add_done_callback(_report)

    async def _expand(self, outcome: str) -> None:
        object_id, _, status = outcome.partition(" ")
        family = next((family for prefix, family in self._families.items() if object_id.startswith(prefix)), None)
        if family is None:
            _log.warning("webhooks.unknown_outcome", outcome=outcome)
            return
        subject = await family.look_up(object_id)
        event = WebhookEvent(
            id=event_id_of(outcome),
            created_at=subject.ended_at,
            type=f"{family.name}.{status}",
            data=WebhookSubject(id=subject.shown_as or object_id),
        )
        endpoints = await self._webhooks.subscribed(subject.project, event.type)
        if await self._deliveries.expand(outcome, [_delivery(event, endpoint) for endpoint in endpoints]) and endpoints:
            _log.info("webhooks.due", event=event.id, type=event.type, subject=object_id, endpoints=len(endpoints))

    async def _deliver(self, delivery_id: str, endpoint_id: str) -> None:
        try:
            delivery = await self._deliveries.get(delivery_id)
            endpoint = await self._webhooks.find(endpoint_id)
            if delivery is None or endpoint is None or await self._arrives(delivery, endpoint):
                await self._deliveries.finish(delivery_id)
        finally:
            self._running[endpoint_id] -= 1
            if not self._running[endpoint_id]:
                del self._running[endpoint_id]

    async def _arrives(self, delivery: DeliveryRecord, endpoint: WebhookRecord) -> bool:
        """Try once; True when no further try is needed."""
        log = _log.bind(event_id=delivery.event_id, endpoint=endpoint.id, attempt=delivery.attempts + 1)
        try:
            status = await self._sender.send(endpoint, event_id=delivery.event_id, body=delivery.body.encode())
        except Undeliverable as error:
            return await self._retry(delivery, log, str(error))
        if 200 <= status < 300 or status == 410:
            log.info("webhook.delivered" if status != 410 else "webhook.gone", status=status)
            metrics.WEBHOOK_DELIVERIES.labels("delivered" if status != 410 else "gone").inc()
            return True
        return await self._retry(delivery, log, f"status {status}")

    async def _retry(self, delivery: DeliveryRecord, log: structlog.typing.FilteringBoundLogger, reason: str) -> bool:
        attempts = delivery.attempts + 1
        at = time.time() + retry_delay_s(attempts, self._retry_base_s)
        if at > delivery.created_at + _END * self._retry_base_s:
            log.warning("webhook.given_up", reason=reason)
            metrics.WEBHOOK_DELIVERIES.labels("given_up").inc()
            return True
        await self._deliveries.retry(replace(delivery, attempts=attempts), at=at)
        log.info("webhook.failed", reason=reason, next_in_s=round(at - time.time()))
        metrics.WEBHOOK_DELIVERIES.labels("failed").inc()
        return False


def _delivery(event: WebhookEvent, endpoint: WebhookRecord) -> DeliveryRecord:
    return DeliveryRecord(
        id=f"{event.id}.{endpoint.id}",
        endpoint_id=endpoint.id,
        event_id=event.id,
        body=msgspec.json.encode(event).decode(),
        created_at=time.time(),
    )


def _report(task: asyncio.Task[None]) -> None:
    """Log why a task failed; what it worked on is due again when its lease is over."""
    if task.cancelled() or (error := task.exception()) is None:
        return
    if isinstance(error, StoreUnavailable):
        _log.warning("webhooks.store_away")
    else:
        _log.error("webhooks.failed", exc_info=error)
