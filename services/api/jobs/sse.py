"""A job's events as server-sent events (WHATWG HTML, section 9.2), resumable by the id of the last one seen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import msgspec
import structlog

from services.api.draining import pause
from shared.errors import StoreUnavailable
from shared.schemas.events import Event
from shared.store.jobs import JobStore, News

_log = structlog.get_logger()

POLL_S = 0.3
PING_S = 15.0
"""Silence after which a comment is sent, so that nothing between server and client takes the connection for dead."""

ALLOWED_S = 2.0
"""How often it is looked whether the key is still let in."""

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
_BATCH = 200


def frame(event: Event) -> bytes:
    """Write one event; JSON has no line breaks, so one `data` line holds it."""
    return b"id: %s\ndata: %s\n\n" % (event.id.encode(), msgspec.json.encode(event))


async def follow(
    jobs: JobStore,
    job_id: str,
    *,
    after: str | None,
    drain: asyncio.Event,
    allowed: Callable[[], Awaitable[bool]],
    poll_s: float = POLL_S,
    ping_s: float = PING_S,
) -> AsyncIterator[bytes]:
    """Yield whole frames, oldest event first, each event once, until the job has ended, `drain` is set, or it is not
    `allowed` any more.

    Holds no connection to the database between two looks. While the database is away the stream stays open and silent
    but for its pings. Only a job's end is marked by `[DONE]`: whoever does not see it comes back with the last id.
    """
    sent_at = looked_at = time.monotonic()
    while not drain.is_set():
        if time.monotonic() - looked_at >= ALLOWED_S:
            looked_at = time.monotonic()
            if not await allowed():
                _log.info("events.key_refused", job_id=job_id)
                return
        news = await _look(jobs, job_id, after)
        if news.events:
            after = news.events[-1].id
            sent_at = time.monotonic()
            yield _frames(news.events)
        elif time.monotonic() - sent_at >= ping_s:
            sent_at = time.monotonic()
            yield PING
        if news.ended:
            yield DONE
            return
        if len(news.events) < _BATCH:
            await pause(drain, poll_s)


def _frames(events: Sequence[Event]) -> bytes:
    return b"".join(map(frame, events))


async def _look(jobs: JobStore, job_id: str, after: str | None) -> News:
    try:
        return await jobs.news(job_id, after=after, limit=_BATCH)
    except StoreUnavailable:
        _log.warning("events.store_away", job_id=job_id)
        return News(events=[], ended=False)
