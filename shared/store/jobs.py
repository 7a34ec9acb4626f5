"""Fine-tuning jobs, their events and checkpoints. Every change is compare-and-set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import msgspec
from msgspec.structs import replace

from shared import ids, keys
from shared.errors import LeaseLost, NotFound, RateLimited
from shared.records import JobRecord, Priority
from shared.schemas.checkpoints import Checkpoint
from shared.schemas.events import Event
from shared.states import TERMINAL, JobState, check_transition
from shared.store import index
from shared.store.client import Client
from shared.store.leases import owners_only

_decode = msgspec.json.Decoder(JobRecord).decode
_decode_event = msgspec.json.Decoder(Event).decode
_decode_checkpoint = msgspec.json.Decoder(Checkpoint).decode
_encode = msgspec.json.Encoder().encode

Change = Callable[[JobRecord], JobRecord]


@dataclass(frozen=True)
class News:
    """Events behind a place in a job's story, oldest first."""

    events: Sequence[Event]
    ended: bool
    """The job has ended, and these are the last of its events."""


def event(
    message: str,
    *,
    level: Literal["info", "warn", "error"] = "info",
    type: Literal["message", "metrics"] = "message",
    data: dict[str, Any] | None = None,
) -> Event:
    """Form an event that is not stored yet; the stream gives it its id."""
    return Event(id="", created_at=int(time.time()), level=level, message=message, type=type, data=data or {})


class JobStore:
    """The only writer of job records. `fence` is the token of the job's lease: with it, a worker that lost its lease
    can no longer write (LeaseLost)."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def create(self, record: JobRecord, events: Iterable[Event], *, limit: int | None = None) -> JobRecord:
        """Store a new job, or return the one that has its id already, so that creating twice is the same as once.

        Raises RateLimited when the project has `limit` unfinished jobs.
        """
        outcome = await self._client.script(
            "create_job",
            [
                keys.job(record.id),
                keys.job_events(record.id),
                keys.jobs(record.project),
                keys.ACTIVE_JOBS,
                keys.project_jobs(record.project),
                keys.SEQUENCE,
                keys.turns(record.priority),
            ],
            [record.id, _encode(record), -1 if limit is None else limit, record.project, *map(_encode, events)],
        )
        if outcome < 0:
            raise RateLimited(
                f"The project has {limit} unfinished fine-tuning jobs, which is its limit; wait for one to end.",
                code="concurrent_jobs_exceeded",
            )
        return record if outcome else await self.get(record.id)

    async def get(self, job_id: str, *, project: str | None = None) -> JobRecord:
        """Raises NotFound when it is unknown or belongs to another project than `project`."""
        return (await self._read(job_id, project))[0]

    async def many(self, job_ids: Sequence[str]) -> dict[str, JobRecord]:
        """Return those that exist, by id."""
        raws = await self._client.together([("HGET", keys.job(one), "record") for one in job_ids]) if job_ids else []
        return {record.id: record for record in (_decode(raw) for raw in raws if raw is not None)}

    async def list(self, project: str, *, after: str | None, limit: int) -> tuple[Sequence[JobRecord], bool]:
        """Return a page, newest first, and whether there are more."""
        ids, more = await index.page(self._client, keys.jobs(project), after=after, limit=limit)
        raws = await self._client.together([("HGET", keys.job(job_id), "record") for job_id in ids]) if ids else []
        return [_decode(raw) for raw in raws if raw is not None], more

    async def update(
        self,
        job_id: str,
        change: Change,
        events: Callable[[JobRecord], Iterable[Event]] | Iterable[Event] = (),
        *,
        project: str | None = None,
        fence: str = "",
        nonce: str = "",
    ) -> JobRecord:
        """Apply `change` to the newest record, retrying while others write, and append events in the same step.

        Repeating a call that got no answer, with the `nonce` of the first, is the same as once.
        Raises NotFound, LeaseLost, or TransitionRefused when `change` asks for a state that is not allowed from here.
        """
        nonce = nonce or ids.new_token()
        while True:
            current, version = await self._read(job_id, project)
            changed = change(current)
            check_transition(current.status, changed.status)
            if changed is current:
                return current
            additions = events(changed) if callable(events) else events
            outcome = await self._client.script(
                "commit_job",
                [
                    keys.job(job_id),
                    keys.job_events(job_id),
                    keys.ACTIVE_JOBS,
                    keys.project_jobs(changed.project),
                    keys.OUTCOMES,
                    keys.turns(changed.priority),
                    *map(keys.turns, get_args(Priority)),
                ],
                [
                    version,
                    _encode(changed),
                    fence,
                    job_id,
                    changed.status.value,
                    int(changed.status in TERMINAL),
                    nonce,
                    changed.project,
                    *map(_encode, additions),
                ],
            )
            if outcome == 1:
                return changed
            if outcome == 2:
                return (await self._read(job_id, project))[0]
            _raise_for(outcome, job_id)

    async def finish(
        self, job_id: str, status: JobState, *, events: Iterable[Event] = (), fence: str = "", **fields: Any
    ) -> JobRecord:
        """Bring a job to its end; a job that is at an end already stays as it is and gets no event."""

        def end(current: JobRecord) -> JobRecord:
            if current.status in TERMINAL:
                return current
            return replace(current, status=status, finished_at=int(time.time()), estimated_finish=None, **fields)

        return await self.update(job_id, end, events, fence=fence)

    async def order(self, record: JobRecord) -> int:
        """Return the job's place among all of its priority, which it keeps; 0 for one that is not stored.

        Projects take turns: scripts/prelude.lua says how. Jobs of before they did have their order of creation.
        """
        turn, created = await self._client.together(
            [("HGET", keys.job(record.id), "turn"), ("ZSCORE", keys.jobs(record.project), record.id)]
        )
        return int(turn) if turn is not None else int(created or 0) * 1000

    async def active(self) -> Sequence[str]:
        """List ids of the jobs that are not at their end."""
        return sorted(member.decode() for member in await self._client.call("SMEMBERS", keys.ACTIVE_JOBS))

    async def append_events(self, job_id: str, events: Iterable[Event], *, fence: str = "", nonce: str = "") -> None:
        """Add to a job's story without changing its record.

        Repeating a call that got no answer, with the `nonce` of the first, tells nothing twice.
        """
        outcome = await self._client.script(
            "append_event",
            [keys.job(job_id), keys.job_events(job_id)],
            [fence, nonce or ids.new_token(), *map(_encode, events)],
        )
        _raise_for(outcome, job_id)

    async def events(self, job_id: str, *, after: str | None = None, limit: int = 20) -> tuple[Sequence[Event], bool]:
        """Return a page of events, newest first; `after` is the id of the last one on the page before.

        Raises NotFound when the job has no such event.
        """
        if after is not None:
            await self.check_event(job_id, after)
        end = "+" if after is None else f"({_stream_id(after)}"
        found = await self._client.call("XREVRANGE", keys.job_events(job_id), end, "-", "COUNT", limit + 1)
        events = [_stored_event(entry, fields) for entry, fields in found]
        return events[:limit], len(events) > limit

    async def news(self, job_id: str, *, after: str | None, limit: int) -> News:
        """Return up to `limit` events behind `after`, oldest first. Raises NotFound, also for a malformed `after`."""
        start = "-" if after is None else f"({_stream_id(after)}"
        raw, found = await self._client.together(
            [
                ("HGET", keys.job(job_id), "record"),
                ("XRANGE", keys.job_events(job_id), start, "+", "COUNT", limit + 1),
            ]
        )
        if raw is None:
            _raise_for(-1, job_id)
        ended = _decode(raw).status in TERMINAL and len(found) <= limit
        return News(events=[_stored_event(entry, fields) for entry, fields in found[:limit]], ended=ended)

    async def check_event(self, job_id: str, event_id: str) -> None:
        """Raise NotFound unless the job has this event."""
        entry = _stream_id(event_id)
        if not await self._client.call("XRANGE", keys.job_events(job_id), entry, entry, "COUNT", 1):
            raise _no_event(event_id)

    async def append_checkpoint(self, checkpoint: Checkpoint, *, fence: str = "") -> None:
        """Record a checkpoint; one per step, a second call for the same step changes nothing."""
        job_id = checkpoint.fine_tuning_job_id
        outcome = await self._client.script(
            "append_checkpoint",
            [keys.job(job_id), keys.job_checkpoints(job_id)],
            [fence, _encode(checkpoint), checkpoint.step_number],
        )
        _raise_for(outcome, job_id)

    async def forget_checkpoints(self, job_id: str, *, fence: str = "") -> None:
        """Remove what append_checkpoint recorded: the job did not succeed. Raises LeaseLost."""
        await owners_only(self._client, job_id, fence, [("DEL", keys.job_checkpoints(job_id))])

    async def checkpoints(self, job_id: str) -> Sequence[Checkpoint]:
        """Return all checkpoints, newest first; there are at most as many as epochs."""
        found = await self._client.call("LRANGE", keys.job_checkpoints(job_id), 0, -1)
        return [_decode_checkpoint(raw) for raw in reversed(found)]

    async def _read(self, job_id: str, project: str | None) -> tuple[JobRecord, int]:
        raw, version = await self._client.call("HMGET", keys.job(job_id), "record", "version")
        record = _decode(raw) if raw is not None else None
        if record is None or (project is not None and record.project != project):
            raise NotFound(f"Could not find fine tune: {job_id}", code="fine_tune_not_found", param="fine_tune_id")
        return record, int(version)


def _stream_id(event_id: str) -> str:
    """Read the place in the stream from an event's id: two numbers of 64 bits, not both 0."""
    entry = event_id.removeprefix("ftevent-")
    numbers = [int(part) for part in entry.split("-") if part.isascii() and part.isdigit() and len(part) <= 20]
    if entry.count("-") != 1 or len(numbers) != 2 or not 0 < max(numbers) < 2**64:
        raise _no_event(event_id)
    return entry


def _no_event(event_id: str) -> NotFound:
    return NotFound(f"No such event to list after: {event_id[:100]}", param="after")


def _stored_event(entry: bytes, fields: dict[bytes, bytes]) -> Event:
    return replace(_decode_event(fields[b"event"]), id=f"ftevent-{entry.decode()}")


def _raise_for(outcome: int, job_id: str) -> None:
    if outcome == -1:
        raise NotFound(f"Could not find fine tune: {job_id}", code="fine_tune_not_found", param="fine_tune_id")
    if outcome == -2:
        raise LeaseLost(f"{job_id} is owned by another worker now")
