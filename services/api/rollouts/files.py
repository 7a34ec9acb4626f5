"""A job's files of rollouts, from the data folder or the object store, read as streams: one may be large."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing

import msgspec
import structlog

from shared.blobs.interface import Blobs
from shared.errors import InvalidRequest
from shared.records import JobRecord
from shared.rollout_records import (
    ROLLOUTS_FOLDER,
    Place,
    RolloutGroup,
    RolloutHeader,
    decode_group,
    decode_header,
    place_of,
    rollout_file,
)

_log = structlog.get_logger()

_KNOWN_HEADERS = 20_000
_AT_ONCE = 16
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)
"""What reading a line that is damaged raises."""


class RolloutFiles:
    """Reads them. What a step was like is remembered, as long as its file stays as it is."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._known: dict[tuple[str, Place, float], RolloutHeader] = {}

    async def places(self, job_id: str) -> dict[Place, float]:
        """Return which files a job has, in order, and when each was written (Unix time). Raises StorageUnavailable."""
        found = await self._blobs.files(self._blobs.paths.job_folder(job_id) / ROLLOUTS_FOLDER)
        return dict(sorted((place, at) for name, at in found.items() if (place := place_of(name)) is not None))

    async def headers(self, job_id: str) -> list[RolloutHeader]:
        """Return what each step was like, in order. Raises StorageUnavailable."""
        return await self._headers(job_id, await self.places(job_id))

    async def with_line(self, job_id: str, places: Mapping[Place, float], line: int) -> list[Place]:
        """Return which of these files have answers to a prompt, or do not say. Raises StorageUnavailable."""
        headers = await self._headers(job_id, places)
        return [Place(one.step, one.validation) for one in headers if not one.lines or line in one.lines]

    async def groups(self, job_id: str, place: Place, *, lines: Iterable[int] = ()) -> AsyncGenerator[RolloutGroup]:
        """Yield the prompts of a file with their answers, or only those on `lines`; none if the file is gone.

        What stands before the first line that cannot be read is all of a damaged file. Raises StorageUnavailable.
        """
        wanted = tuple(b'{"line":%d,' % line for line in lines)
        async with aclosing(self._lines(job_id, place)) as found:
            async for number, line in _numbered(found):
                if number and (not wanted or line.startswith(wanted)):
                    try:
                        group = await asyncio.to_thread(decode_group, line)
                    except _UNREADABLE:
                        _warn(job_id, place)
                        return
                    yield group

    async def _headers(self, job_id: str, places: Mapping[Place, float]) -> list[RolloutHeader]:
        room = asyncio.Semaphore(_AT_ONCE)

        async def header(place: Place, at: float) -> RolloutHeader | None:
            async with room:
                return await self._header(job_id, place, at)

        found = await asyncio.gather(*(header(place, at) for place, at in places.items()))
        return [one for one in found if one is not None]

    async def _header(self, job_id: str, place: Place, at: float) -> RolloutHeader | None:
        known = self._known.get((job_id, place, at))
        if known is not None:
            return known
        async with aclosing(self._lines(job_id, place)) as lines:
            async for line in lines:
                try:
                    header = decode_header(line)
                except _UNREADABLE:
                    _warn(job_id, place)
                    return None
                if len(self._known) >= _KNOWN_HEADERS:
                    del self._known[next(iter(self._known))]
                self._known[job_id, place, at] = header
                return header
        return None

    async def _lines(self, job_id: str, place: Place) -> AsyncGenerator[bytes]:
        path = rollout_file(self._blobs.paths.job_folder(job_id), place.step, validation=place.validation)
        try:
            content = await self._blobs.read(path)
            rest = b""
            async for block in content.blocks:
                *whole, rest = (rest + block).split(b"\n")
                for line in whole:
                    yield line
        except FileNotFoundError:  # written anew, or deleted, just now
            return


def _warn(job_id: str, place: Place) -> None:
    _log.warning("rollouts.unreadable", job_id=job_id, step=place.step, validation=place.validation)


async def _numbered(lines: AsyncIterator[bytes]) -> AsyncIterator[tuple[int, bytes]]:
    number = 0
    async for line in lines:
        yield number, line
        number += 1


def check_has_rollouts(record: JobRecord) -> None:
    """Raise InvalidRequest for a job of another method."""
    if record.method != "reinforcement":
        raise InvalidRequest(
            f"Job {record.id} has no rollouts: its method is '{record.method}', and only 'reinforcement' samples.",
            code="invalid_value",
            param="job_id",
        )
