"""Writes the database's records beside files and models, so that it can be made again: `selftune rebuild`.

Redis is the truth, and what lies in `records/` follows it: a round looks at every record, writes what has changed, and
then removes what is gone. A process that dies in between loses nothing, since the next round finds the same
differences. Of several api processes the one that holds the lock does it.
Before anything is written, and again before anything is removed, the database has to be the one that the files are of:
a database that was emptied or exchanged must not take them along.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress

import structlog
from msgspec.structs import replace

from shared import keys
from shared.blobs.interface import Blobs
from shared.errors import InvalidRequest, StorageUnavailable, StoreUnavailable
from shared.record_files import RecordFiles
from shared.states import TERMINAL
from shared.store import entries
from shared.store.client import Client
from shared.store.entries import Entry
from shared.store.lock import Hold, Lock, run_under
from shared.store.schema import Schema, read_schema

_LOCK_TTL_S = 30.0
_RENEW_S = 10.0
_LAST_ROUND_S = 5.0
_MOST_WORK = 0.05
"""Part of the time that rounds should take; with very many records they come less often than they should."""
_LONGEST_PAUSE_S = 60.0
_LATE_S = 60.0
"""From when on it is told that the files are behind, beyond the interval that is set."""
_SETTLED_S = 600
"""How long a job has to be over until nothing is added to its story any more."""
_AT_ONCE = 50

_log = structlog.get_logger()


class Recorder:
    """Runs beside the requests until closed, and goes once more over everything then."""

    def __init__(self, client: Client, blobs: Blobs, *, interval_s: float) -> None:
        self._client = client
        self._files = RecordFiles(blobs)
        self._where = "data folder" if blobs.is_local else "bucket"
        self._lock = Lock(client, keys.RECORDER_LOCK, ttl_s=_LOCK_TTL_S)
        self._interval_s = interval_s
        self._written: dict[str, bytes] | None = None
        self._settled: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._held_at = 0.0
        self._current_at: float | None = None
        """When the last complete round began; None while another process writes. Both by time.monotonic()."""
        self._objection = ""

    @property
    def objection(self) -> str:
        """Why nothing is written, or how far the files are behind; empty while all is well."""
        if self._objection or self._current_at is None:
            return self._objection
        age_s = time.monotonic() - self._current_at
        return f"the records on disk are {age_s:.0f} seconds behind" if age_s > self._interval_s + _LATE_S else ""

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="recorder")

    async def close(self) -> None:
        """Write what is left to write, unless that takes long or is impossible, and stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            try:
                async with asyncio.timeout(_LAST_ROUND_S):
                    await self.round()
                    await self._lock.release()
            except (StoreUnavailable, StorageUnavailable, TimeoutError, OSError) as error:
                _log.warning("records.left_behind", reason=type(error).__name__)

    async def _run(self) -> None:
        pause_s = 0.0
        while True:
            started = time.monotonic()
            try:
                await self._rest(pause_s)
                started = time.monotonic()
                await self.round()
            except StoreUnavailable:
                _log.warning("records.store_unavailable")
            except StorageUnavailable:
                self._object("records cannot be written: the object storage does not answer")
            except OSError as error:
                self._object(f"records cannot be written: {error.strerror or type(error).__name__}")
            except Exception:  # noqa: BLE001 - one fault must not end it; the next round tries again
                _log.error("records.failed", exc_info=True)
            pause_s = _pause_s(self._interval_s, time.monotonic() - started)

    async def _rest(self, seconds: float) -> None:
        """Sleep, and keep the lock meanwhile."""
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, _RENEW_S))
            with suppress(StoreUnavailable):
                await self._renewed()

    async def round(self) -> None:
        """Bring the files up to date, if this process is the one that does.

        Raises StoreUnavailable, also when the lock is lost while something is written, StorageUnavailable, OSError.
        """
        began = time.monotonic()
        if not await self._hold():
            return
        schema = await self._matching_schema()
        if schema is None:
            return
        if self._written is None:
            self._written, self._settled = await self._read_all(), set()
        written = self._written
        if written is None:
            return
        seen = await self._write_changes(written)
        if seen is None or await self._hold() is not Hold.RENEWED or await read_schema(self._client) != schema:
            return
        if not await self._remove(written, sorted(written.keys() - seen)):
            return
        await self._claim(schema)
        self._current_at = began
        self._object("")

    async def _hold(self) -> Hold:
        """Take or renew the lock; unless it was kept, another may have written, and what is on disk is not known."""
        held = await self._lock.hold()
        self._held_at = time.monotonic()
        if held is not Hold.RENEWED:
            self._written = None
            self._current_at = self._held_at if held else None
        return held

    async def _renewed(self) -> bool:
        """Renew the lock when it is time to; False if it was lost meanwhile."""
        return time.monotonic() - self._held_at < _RENEW_S or await self._hold() is Hold.RENEWED

    async def _matching_schema(self) -> Schema | None:
        schema = await read_schema(self._client)
        try:
            known = await self._files.database()
        except InvalidRequest as error:
            self._object(error.message)
            return None
        if known is None and schema is not None:
            await self._files.claim(schema)
        elif known is not None and (schema is None or schema.id != known.id):
            self._object(
                f"the {self._where} holds the records of another database, and this one's are not written there: "
                "see `selftune rebuild`"
            )
            return None
        return schema

    async def _claim(self, schema: Schema) -> None:
        """Note the form that the files have now, after all of them were written in it."""
        if await self._files.database() != schema:
            await self._files.claim(schema)

    async def _write_changes(self, written: dict[str, bytes]) -> set[str] | None:
        """Write what differs from `written`, and return the keys of all that is there; None if the lock is lost."""
        seen = set[str]()
        for family, names in (await entries.find(self._client)).items():
            if not entries.kind_of(family).mirrored:
                continue
            seen.update(names)
            unsettled = [name for name in names if name not in self._settled]
            for start in range(0, len(unsettled), _AT_ONCE):
                changed: list[Entry] = []
                for entry in await self._read(family, unsettled[start : start + _AT_ONCE], written):
                    if written.get(entry.key) != _fingerprint(entry):
                        changed.append(entry)
                    elif _is_settled(entry):
                        self._settled.add(entry.key)
                await self._write(written, changed)
                if not await self._renewed():
                    return None
        return seen

    async def _read(self, family: str, names: Sequence[str], written: dict[str, bytes]) -> list[Entry]:
        """Read records; of unfinished jobs, whose stories are long, only those of which the rest has changed."""
        if family == "job":
            briefly = entries.read(self._client, family, names, stories=False)
            names = [job.key async for job in briefly if _is_over(job) or written.get(job.key) != _fingerprint(job)]
        return [entry async for entry in entries.read(self._client, family, names)]

    async def _write(self, written: dict[str, bytes], changed: Sequence[Entry]) -> None:
        if changed:
            encoded, fingerprints = await asyncio.to_thread(_described, changed)
            await run_under(self._hold, self._files.write(encoded), renew_s=_RENEW_S)
            written.update(fingerprints)

    async def _remove(self, written: dict[str, bytes], gone: Sequence[str]) -> bool:
        """Remove what is gone; False if the lock is lost meanwhile."""
        for start in range(0, len(gone), _AT_ONCE):
            some = gone[start : start + _AT_ONCE]
            await run_under(self._hold, self._files.remove(some), renew_s=_RENEW_S)
            for key in some:
                del written[key]
            if not await self._renewed():
                return False
        return True

    async def _read_all(self) -> dict[str, bytes] | None:
        """Read what is there, by key; None if the lock is lost meanwhile."""
        found = {}
        async for _, entry in self._files.read():
            if entry is not None:
                found[entry.key] = await asyncio.to_thread(_fingerprint, entry)
            if not await self._renewed():
                return None
        return found

    def _object(self, objection: str) -> None:
        if objection and objection != self._objection:
            _log.error("records.not_written", reason=objection)
        self._objection = objection


def _pause_s(interval_s: float, taken_s: float) -> float:
    """Return how long to wait after a round that took `taken_s`."""
    return max(interval_s, min(taken_s / _MOST_WORK, _LONGEST_PAUSE_S))


def _described(changed: Sequence[Entry]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return by key what is written of entries, and their fingerprints."""
    encoded = {entry.key: entries.encode(entry) for entry in changed}
    return encoded, {entry.key: _fingerprint(entry) for entry in changed}


def _fingerprint(entry: Entry) -> bytes:
    """Return what tells whether an entry has to be written again; the story of an unfinished job is no reason."""
    if entry.family == "job" and not _is_over(entry):
        entry = replace(entry, values=[value for value in entry.values if value.type != "stream"])
    return hashlib.sha256(entries.encode(entry)).digest()


def _is_over(entry: Entry) -> bool:
    return entry.record().get("status") in TERMINAL


def _is_settled(entry: Entry) -> bool:
    """Whether an entry changes no more. Jobs are the most numerous, and their stories the longest."""
    ended_at = entry.record().get("finished_at") if entry.family == "job" and _is_over(entry) else None
    return isinstance(ended_at, int) and ended_at < time.time() - _SETTLED_S
