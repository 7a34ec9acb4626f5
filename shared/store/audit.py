"""The audit log: a stream of what happened, newest last, and what is about to happen beside it.

A change is noted as pending before it is made, and moves into the stream when its outcome is known. One whose process
died stays pending, and enters the log as `unknown` an hour later, so that no change is without an entry. One that takes
longer than that stays `unknown`, and is not entered again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from shared import ids, keys
from shared.audit_records import AuditRecord
from shared.errors import NotFound
from shared.store.client import Client

KEPT = 100_000
"""Entries, roughly; older ones are dropped."""
PENDING_S = 3600.0
_MARK = b"settled "
"""Stands, with the Unix time, in the place of what was settled."""
_MARKED_S = 7 * 86_400
_CHUNK = 500
_PREFIX = "audit_log-"
_MAX_MS = 2**63 - 1

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(AuditRecord).decode


class Span(Struct, frozen=True, kw_only=True):
    """Unix times, both included, between which entries are wanted."""

    first_ms: int = 0
    last_ms: int = _MAX_MS


_EVER = Span()


class AuditStore:
    """Appends to the log and reads it, newest first. Entry ids are `audit_log-{place in the stream}`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def begin(self, record: AuditRecord) -> str:
        """Note what is about to be done, and return a token for `end`. Raises StoreUnavailable: then do not do it."""
        token = ids.new_token()
        await self._client.call("HSET", keys.AUDIT_PENDING, token, _encode(record))
        return token

    async def end(self, token: str, record: AuditRecord | None) -> None:
        """Enter what came of it; None if nothing was changed."""
        await self._end(token, record)

    async def add(self, record: AuditRecord) -> None:
        """Enter what needs no announcement: it happened already, or was refused."""
        await self._end("", record)

    async def settle(self, *, older_than_s: float = PENDING_S) -> Sequence[AuditRecord]:
        """Enter what has been pending for so long, as `unknown`, and return what was entered."""
        found = await self._client.call("HGETALL", keys.AUDIT_PENDING)
        now, entered = time.time(), list[AuditRecord]()
        for token, raw in found.items():
            if raw.startswith(_MARK):
                if float(raw.removeprefix(_MARK)) <= now - _MARKED_S:
                    await self._client.call("HDEL", keys.AUDIT_PENDING, token)
                continue
            record = replace(_decode(raw), outcome="unknown")
            if record.at <= now - older_than_s and await self._end(token.decode(), record, mark=b"%s%d" % (_MARK, now)):
                entered.append(record)
        return entered

    async def page(
        self,
        wanted: Callable[[AuditRecord], bool],
        *,
        span: Span = _EVER,
        after: str | None = None,
        before: str | None = None,
        limit: int,
    ) -> tuple[Sequence[tuple[str, AuditRecord]], bool]:
        """Return up to `limit` entries that are wanted, newest first, and whether there are more.

        They are those behind `after`, or, with `before` alone, the last ones ahead of it. Raises NotFound for ids that
        are no entry's.
        """
        newest = f"{span.last_ms}" if after is None else f"({await self._place(after, 'after')}"
        oldest = f"{span.first_ms}" if before is None else f"({await self._place(before, 'before')}"
        if span.last_ms < 0:
            return [], False
        upwards = before is not None and after is None
        found: list[tuple[str, AuditRecord]] = []
        while len(found) <= limit:
            bounds = (oldest, newest) if upwards else (newest, oldest)
            command = "XRANGE" if upwards else "XREVRANGE"
            entries = await self._client.call(command, keys.AUDIT, *bounds, "COUNT", _CHUNK)
            read = [(entry.decode(), _decode(fields[b"entry"])) for entry, fields in entries]
            found += [
                (f"{_PREFIX}{entry}", one)
                for entry, one in read
                if span.first_ms <= _ms(entry) <= span.last_ms and wanted(one)
            ]
            if len(entries) < _CHUNK:
                break
            if upwards:
                oldest = f"({read[-1][0]}"
            else:
                newest = f"({read[-1][0]}"
        page = found[:limit]
        return (page[::-1] if upwards else page), len(found) > limit

    async def _place(self, entry_id: str, param: str) -> str:
        place = entry_id.removeprefix(_PREFIX)
        numbers = [int(part) for part in place.split("-") if part.isascii() and part.isdigit() and len(part) <= 19]
        known = len(numbers) == 2 and place.count("-") == 1 and entry_id.startswith(_PREFIX) and max(numbers) <= _MAX_MS
        if not known or not await self._client.call("XRANGE", keys.AUDIT, place, place, "COUNT", 1):
            raise NotFound(f"No such audit log entry: {entry_id[:100]}", param=param)
        return place

    async def _end(self, token: str, record: AuditRecord | None, *, mark: bytes = b"") -> bool:
        raw = b"" if record is None else _encode(record)
        return bool(await self._client.script("end_audit", [keys.AUDIT, keys.AUDIT_PENDING], [token, raw, mark, KEPT]))


def _ms(entry: str) -> int:
    return int(entry.partition("-")[0])
