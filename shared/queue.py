"""The queues: the only shared module that knows arq.

arq delivers at least once, so every job function may run twice; the job's record and lease decide.
Results are not kept: outcomes live in our own records. MessagePack replaces arq's default, pickle, with which whoever
writes to Redis runs code.

arq takes what has the lowest score first; the score is a time in milliseconds, and what lies in the past is due. Jobs
get such times by priority and, within one, by the place that they were given when they were submitted, at which
projects take turns (JobStore.order). A job keeps its place when it is queued again, and has the same one in the queue
for validation and in that for training:

    high    1970-01-01 + its place in milliseconds
    normal  1980-01-01 + the same
    low     1990-01-01 + the same

A job that runs is not interrupted for another.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix
from redis import exceptions

from shared.errors import StoreUnavailable
from shared.records import JobRecord, Priority
from shared.states import JobState

VALIDATE_QUEUE = "selftune:queue:validate"
TRAIN_QUEUE = "selftune:queue:train"

TIMEOUT_S = 5.0
"""How long Redis may take to answer a command."""
CONNECT_TIMEOUT_S = 2.0

Function = Literal["validate", "train"]
QUEUES: dict[Function, str] = {"validate": VALIDATE_QUEUE, "train": TRAIN_QUEUE}

_FIRST_YEAR: dict[Priority, int] = {"high": 1970, "normal": 1980, "low": 1990}

# arq drops a queued job after a day by default; a busy trainer may reach it later.
_EXPIRES = timedelta(days=365)

serialize = msgspec.msgpack.encode


def deserialize(raw: bytes) -> dict[str, Any]:
    return msgspec.msgpack.decode(raw, type=dict[str, Any])


async def connect(url: str) -> ArqRedis:
    """Open arq's own pool. Raises StoreUnavailable."""
    # Not arq's create_pool: its connections wait for ever for a server that has gone silent.
    pool: ArqRedis = ArqRedis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=CONNECT_TIMEOUT_S)
    pool.job_serializer, pool.job_deserializer = serialize, deserialize
    try:
        await pool.ping()
    except (exceptions.RedisError, OSError) as error:
        await pool.aclose()
        raise StoreUnavailable("The database does not answer at the moment; please try again.") from error
    return pool


async def messages(pool: ArqRedis, queue: str) -> list[str]:
    """List the ids of the jobs that have a message in a queue, worked on ones included."""
    return [member.decode().partition(":")[2] for member in await pool.zrange(queue, 0, -1)]


async def marked(pool: ArqRedis, function: Function, job_id: str) -> bool:
    """Tell whether arq takes a job to be in progress."""
    return bool(await pool.exists(f"{in_progress_key_prefix}{function}:{job_id}"))


async def unmark(pool: ArqRedis, function: Function, job_id: str) -> bool:
    """Remove the mark of a job in progress that a dead worker has left; tells whether there was one.

    arq marks a job as in progress for the longest time that a job may take.
    """
    return bool(await pool.delete(f"{in_progress_key_prefix}{function}:{job_id}"))


async def remove(pool: ArqRedis, function: Function, job_id: str) -> None:
    """Remove a job's message from its queue, with all that arq keeps of it."""
    message = f"{function}:{job_id}"
    async with pool.pipeline(transaction=True) as pipe:
        pipe.zrem(QUEUES[function], message)
        pipe.delete(*(f"{prefix}{message}" for prefix in (job_key_prefix, in_progress_key_prefix, retry_key_prefix)))
        await pipe.execute()


class Queue:
    """Asks workers to look at a job. The pool opens at first use, so a process can start while Redis is away."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: ArqRedis | None = None

    async def validate(self, job_id: str, *, priority: Priority = "normal", order: int) -> None:
        """Have a job's files validated, when no job of a higher priority or of a lower `order` waits."""
        await self._enqueue("validate", job_id, VALIDATE_QUEUE, score=_score(priority, order))

    async def train(self, job_id: str, *, priority: Priority = "normal", order: int) -> None:
        """Have a job trained, when no job of a higher priority or of a lower `order` waits."""
        await self._enqueue("train", job_id, TRAIN_QUEUE, score=_score(priority, order))

    async def put(self, record: JobRecord, *, order: int) -> None:
        """Queue a job for what its state asks for; `order` is JobStore.order()."""
        if record.status is JobState.VALIDATING_FILES:
            await self.validate(record.id, priority=record.priority, order=order)
        else:
            await self.train(record.id, priority=record.priority, order=order)

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.aclose()

    async def _enqueue(self, function: str, job_id: str, queue: str, *, score: datetime | None = None) -> None:
        """Put a job into a queue; one that waits there already is not put twice."""
        if self._pool is None:
            self._pool = await connect(self._url)
        try:
            await self._pool.enqueue_job(
                function,
                job_id,
                _job_id=f"{function}:{job_id}",
                _queue_name=queue,
                _expires=_EXPIRES,
                _defer_until=score,
            )
        except (exceptions.RedisError, OSError) as error:
            raise StoreUnavailable("The database does not answer at the moment; please try again.") from error


def _score(priority: Priority, order: int) -> datetime:
    """Place a job in its priority's ten years."""
    # Never 0, the first millisecond of all: arq takes that score for a job that is gone. The half is for arq, which
    # cuts what a float makes of the milliseconds.
    return datetime(_FIRST_YEAR[priority], 1, 1, tzinfo=UTC) + timedelta(milliseconds=order + 1.5)
