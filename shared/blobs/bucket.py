"""A bucket of an S3-compatible server through obstore: objects, streamed both ways, in pieces of 8 MiB.

Each piece is a request of its own, repeated by obstore when it fails; so neither a slow reader nor a large file keeps
a connection waiting, and memory stays flat.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import obstore
import structlog
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import S3Store

from shared.errors import StorageUnavailable

PIECE_BYTES = 8 << 20
AT_ONCE = 4
_DELETED_AT_ONCE = 1000
_REQUEST_S = 60
_CONNECT_S = 5
_RETRIES = 4
_RETRIED_S = 15

log = structlog.get_logger()


class Object(NamedTuple):
    """What a listing says of an object; `changed_at` is Unix time by the server's clock."""

    key: str
    size_bytes: int
    changed_at: float


class Bucket:
    """Keys below one prefix. Every method raises StorageUnavailable when the server does not answer or refuses."""

    def __init__(self, bucket: str, prefix: str, *, endpoint: str) -> None:
        """Credentials, region and all else come from the AWS_* variables, or from the machine's role."""
        self._store = S3Store(
            bucket,
            prefix=prefix or None,
            config={"endpoint": endpoint} if endpoint else {},
            client_options={
                "allow_http": endpoint.startswith("http://"),
                "timeout": timedelta(seconds=_REQUEST_S),
                "connect_timeout": timedelta(seconds=_CONNECT_S),
            },
            retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRIED_S)},
        )

    async def put(self, key: str, data: bytes | Path) -> None:
        """Store an object, from a file in pieces; it is visible when it is whole."""
        with _translated(writes=True):
            await obstore.put_async(self._store, key, data, chunk_size=PIECE_BYTES, max_concurrency=AT_ONCE)

    async def size(self, key: str) -> int:
        """Raises FileNotFoundError."""
        return (await self.look(key)).size_bytes

    async def look(self, key: str) -> Object:
        """Raises FileNotFoundError."""
        with _translated():
            found = await obstore.head_async(self._store, key)
        return Object(key, found["size"], found["last_modified"].timestamp())

    async def read(self, key: str) -> bytes:
        """Read a small object. Raises FileNotFoundError."""
        with _translated():
            return bytes(await (await obstore.get_async(self._store, key)).bytes_async())

    async def pieces(self, key: str, size_bytes: int) -> AsyncIterator[bytes]:
        """Yield an object's bytes in order; a few pieces are on their way while one is used."""
        starts = iter(range(0, size_bytes, PIECE_BYTES))
        waiting: deque[asyncio.Task[bytes]] = deque()
        try:
            while True:
                while len(waiting) < AT_ONCE and (start := next(starts, None)) is not None:
                    end = min(start + PIECE_BYTES, size_bytes)
                    waiting.append(asyncio.create_task(self._piece(key, start, end)))
                if not waiting:
                    return
                yield await waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def objects(self, prefix: str) -> list[Object]:
        """List what is below `prefix`, at any depth."""
        found = []
        with _translated():
            async for page in obstore.list(self._store, prefix, chunk_size=1000):
                found += [Object(each["path"], each["size"], each["last_modified"].timestamp()) for each in page]
        return found

    async def directly_in(self, prefix: str) -> list[Object]:
        """List the objects of which `prefix` is all but the last part of the key."""
        with _translated():
            page = await obstore.list_with_delimiter_async(self._store, prefix)
        return [Object(each["path"], each["size"], each["last_modified"].timestamp()) for each in page["objects"]]

    async def copy(self, source: str, target: str) -> None:
        """Copy an object of at most 5 GB inside the server. Raises FileNotFoundError."""
        with _translated():
            await obstore.copy_async(self._store, source, target)

    async def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are gone already count as deleted."""
        wanted = list(keys)
        for start in range(0, len(wanted), _DELETED_AT_ONCE):
            try:
                with _translated():
                    await obstore.delete_async(self._store, wanted[start : start + _DELETED_AT_ONCE])
            except FileNotFoundError:
                continue

    async def _piece(self, key: str, start: int, end: int) -> bytes:
        with _translated():
            return bytes(await obstore.get_range_async(self._store, key, start=start, end=end))


@contextmanager
def _translated(*, writes: bool = False) -> Iterator[None]:
    """Raise our own errors; nothing can be missing for who writes, unless it is the bucket."""
    try:
        yield
    except (BaseError, NotFoundError, OSError) as error:
        is_missing = isinstance(error, NotFoundError | FileNotFoundError)
        if is_missing and not writes and "NoSuchBucket" not in str(error):
            raise FileNotFoundError(str(error).partition("\n")[0]) from error
        log.warning("storage.unavailable", reason=str(error).partition("\n")[0][:500])
        raise StorageUnavailable("The server's object storage does not answer; please try again.") from error
