"""What the whole database holds at the moment, over all projects, for those who operate it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import msgspec
from msgspec import Struct

from shared import keys
from shared.records import ReplicaRecord, WorkerRecord
from shared.states import JobState
from shared.store.client import Client
from shared.store.presence import Presence

_AT_ONCE = 1000
"""Records that are read in one transaction, and decoded in one go: others have to wait for it."""


class _Options(Struct, frozen=True):
    priority: str | None = None


class _Job(Struct, frozen=True):
    """What is read here of a JobRecord."""

    id: str
    status: JobState
    created_at: int
    started: bool = False
    options: _Options = _Options()


class Overview(Struct, frozen=True, kw_only=True):
    """Numbers of one moment; ages are in seconds."""

    jobs: dict[str, int]
    """Unfinished jobs by state, with every state that such a job may have."""
    queued: dict[str, int]
    """Jobs that wait to be trained, by priority."""
    oldest_waiting_s: float
    """Since the creation of the oldest queued job that nobody has begun; 0 where none waits."""
    lease_age_s: float
    """Since the lease of a running job was renewed, the longest; one without a lease counts as a whole period."""
    without_lease: int
    """Running jobs that nobody holds."""
    batches: int
    """Batches that are not at their end."""
    webhooks_pending: int
    """Deliveries that have not arrived, and outcomes that deliveries are to be made of."""
    workers: Sequence[WorkerRecord]
    replicas: Sequence[ReplicaRecord]


_decode = msgspec.json.Decoder(_Job).decode
_UNFINISHED = (JobState.VALIDATING_FILES, JobState.QUEUED, JobState.RUNNING, JobState.PAUSED)
_PRIORITIES = ("high", "normal", "low")


async def look(client: Client, *, lease_ttl_s: float) -> Overview:
    """Read it. Raises StoreUnavailable."""
    jobs = await _jobs(client)
    presence, now = Presence(client), time.time()
    ages = await _lease_ages(client, [job.id for job in jobs if job.status is JobState.RUNNING], lease_ttl_s)
    queued = [job for job in jobs if job.status is JobState.QUEUED]
    states = Counter(job.status.value for job in jobs)
    priorities = Counter(job.options.priority or "normal" for job in queued)
    batches, outcomes, deliveries = await client.together(
        [("ZCARD", key) for key in (keys.ACTIVE_BATCHES, keys.OUTCOMES, keys.WEBHOOK_QUEUE)]
    )
    return Overview(
        jobs={state.value: states[state.value] for state in _UNFINISHED},
        queued={priority: priorities[priority] for priority in _PRIORITIES},
        oldest_waiting_s=max((now - job.created_at for job in queued if not job.started), default=0.0),
        lease_age_s=max((lease_ttl_s if age is None else age for age in ages), default=0.0),
        without_lease=sum(age is None for age in ages),
        batches=batches,
        webhooks_pending=outcomes + deliveries,
        workers=await presence.workers(),
        replicas=await presence.replicas(),
    )


async def _jobs(client: Client) -> list[_Job]:
    ids = [member.decode() for member in await client.call("SMEMBERS", keys.ACTIVE_JOBS)]
    jobs: list[_Job] = []
    for start in range(0, len(ids), _AT_ONCE):
        raws = await client.together([("HGET", keys.job(one), "record") for one in ids[start : start + _AT_ONCE]])
        jobs += _decoded(raws)
        await asyncio.sleep(0)
    return jobs


def _decoded(raws: Iterable[bytes | None]) -> Iterator[_Job]:
    """Leave out what is gone, and what cannot be read: the numbers of all others are of use."""
    for raw in raws:
        with suppress(msgspec.MsgspecError):
            if raw is not None:
                yield _decode(raw)


async def _lease_ages(client: Client, ids: list[str], ttl_s: float) -> list[float | None]:
    """Tell of each job how long ago its lease was renewed; None for one that nobody holds."""
    if not ids:
        return []
    left = await client.together([("PTTL", keys.job_lease(one)) for one in ids])
    return [max(ttl_s - ms / 1000, 0.0) if ms >= 0 else None for ms in left]
