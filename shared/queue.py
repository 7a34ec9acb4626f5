"""The queues: the only shared module that knows arq.

arq delivers at least once, so every job function may run twice; the job's record and lease decide.
Results are not kept: outcomes live in our own records. MessagePack replaces arq's default, pickle, with which whoever
writes to Redis runs code.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
from arq.connections import ArqRedis, RedisSettings, create_pool
from redis import exceptions

from shared.errors import StoreUnavailable

VALIDATE_QUEUE = "selftune:queue:validate"
TRAIN_QUEUE = "selftune:queue:train"

# arq drops a queued job after a day by default; a busy trainer may reach it later.
_EXPIRES = timedelta(days=365)

serialize = msgspec.msgpack.encode


def deserialize(raw: bytes) -> dict[str, Any]:
    return msgspec.msgpack.decode(raw, type=dict[str, Any])


async def connect(url: str) -> ArqRedis:
    """Open arq's own pool. Raises StoreUnavailable."""
    try:
        return await create_pool(RedisSettings.from_dsn(url), job_serializer=serialize, job_deserializer=deserialize)
    except (exceptions.RedisError, OSError) as error:
        raise StoreUnavailable("The database does not answer at the moment; please try again.") from error


class Queue:
    """Asks workers to look at a job. The pool opens at first use, so a process can start while Redis is away."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: ArqRedis | None = None

    async def validate(self, job_id: str) -> None:
        await self._enqueue("validate", job_id, VALIDATE_QUEUE)

    async def train(self, job_id: str) -> None:
        await self._enqueue("train", job_id, TRAIN_QUEUE)

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.aclose()

    async def _enqueue(self, function: str, job_id: str, queue: str) -> None:
        """Put a job into a queue; one that waits there already is not put twice."""
        if self._pool is None:
            self._pool = await connect(self._url)
        try:
            await self._pool.enqueue_job(
                function, job_id, _job_id=f"{function}:{job_id}", _queue_name=queue, _expires=_EXPIRES
            )
        except (exceptions.RedisError, OSError) as error:
            raise StoreUnavailable("The database does not answer at the moment; please try again.") from error
