"""The connection to Redis, typed, with its failures translated into ours."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, TypeAlias

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from shared.errors import StoreUnavailable

Argument: TypeAlias = str | bytes | int | float

Watch: TypeAlias = Callable[[float, bool], None]
"""Is told of each call how many seconds it took, and whether an answer came; of a read that waits for news nothing."""

_WAITS = "XREAD"

_AWAY = (
    exceptions.ConnectionError, exceptions.TimeoutError, exceptions.BusyLoadingError, exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
)  # fmt: skip

# A full disk under the append-only file, a primary that is away, a script that does not end. redis-py puts the command
# before the error of a transaction.
_REFUSAL = re.compile(r"(\A|caused error: \W*)(MISCONF|MASTERDOWN|NOREPLICAS|CLUSTERDOWN|BUSY) ")


class Client:
    """A pool of connections; every call raises StoreUnavailable when Redis is away.

    `timeout_s` bounds one command and must exceed the longest blocking read.
    """

    def __init__(self, url: str, *, connections: int = 32, timeout_s: float = 5.0, watch: Watch | None = None) -> None:
        pool = BlockingConnectionPool.from_url(
            url, max_connections=connections, timeout=timeout_s, socket_timeout=timeout_s, socket_connect_timeout=2.0,
            # Once more on a connection that has died since its last use; not on silence, which would double the wait.
            health_check_interval=30, retry=Retry(NoBackoff(), 1, supported_errors=(exceptions.ConnectionError,)),
        )  # fmt: skip
        self._redis = Redis(connection_pool=pool)
        self._deadline_s = timeout_s + 1.0
        self._watch = watch
        self._scripts: dict[str, str] = {}

    async def call(self, *command: Argument) -> Any:
        """Run one command; replies are as redis-py shapes them, hashes and stream entries as dicts, of bytes."""
        async with _bounded(self._deadline_s, None if command[0] == _WAITS else self._watch):
            return await self._redis.execute_command(*command)  # type: ignore[no-untyped-call]

    async def together(self, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
        """Run several commands as one transaction (MULTI/EXEC): all or none, nothing in between."""
        async with _bounded(self._deadline_s, self._watch), self._redis.pipeline(transaction=True) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute()

    async def script(self, name: str, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Run `scripts/{name}.lua` atomically, with `prelude.lua` before it.

        Raises StoreUnavailable, or ResponseError for a fault in the script.
        """
        sha = self._scripts.get(name)
        if sha is not None:
            try:
                return await self.call("EVALSHA", sha, len(keys), *keys, *arguments)
            except exceptions.NoScriptError:  # a restarted server has forgotten it
                pass
        scripts = files("shared.store") / "scripts"
        text = "".join((scripts / f"{part}.lua").read_text(encoding="utf-8") for part in ("prelude", name))
        self._scripts[name] = (await self.call("SCRIPT", "LOAD", text)).decode()
        return await self.call("EVALSHA", self._scripts[name], len(keys), *keys, *arguments)

    async def ping(self) -> None:
        await self.call("PING")

    async def close(self) -> None:
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()


@asynccontextmanager
async def _bounded(deadline_s: float, watch: Watch | None) -> AsyncIterator[None]:
    """Turn a server that is away or silent into StoreUnavailable, and keep a cancellation that redis-py would lose.

    redis-py 5.3 probes a pooled connection inside `asyncio.timeout(0)`, which takes a cancellation that arrives just
    then for its own: the command goes on, and a task that was cancelled would live for ever.
    """
    task = asyncio.current_task()
    assert task is not None
    cancellations = task.cancelling()
    began = time.perf_counter()
    try:
        async with asyncio.timeout(deadline_s):
            yield
        if watch is not None:
            watch(time.perf_counter() - began, True)
    except (*_AWAY, TimeoutError) as error:
        if task.cancelling() > cancellations:
            raise asyncio.CancelledError from error
        if watch is not None:
            watch(time.perf_counter() - began, False)
        raise StoreUnavailable("The database does not answer at the moment; please try again.") from error
    except exceptions.ResponseError as error:
        if not _REFUSAL.search(str(error)):
            raise
        raise StoreUnavailable("The database cannot take changes at the moment; please try again.") from error
    if task.cancelling() > cancellations:
        raise asyncio.CancelledError
