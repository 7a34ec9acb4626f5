"""Batches. Every change is compare-and-set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from shared import keys
from shared.batch_records import BatchRecord
from shared.batch_states import ENDED, check_batch_transition
from shared.errors import LeaseLost, NotFound
from shared.records import FileRecord
from shared.store import index
from shared.store.client import Argument, Client
from shared.store.storage import Storage

_decode = msgspec.json.Decoder(BatchRecord).decode
_encode = msgspec.json.Encoder().encode

_GONE = -3

Change = Callable[[BatchRecord], BatchRecord]


class BatchStore:
    """The only writer of batch records. `fence` is the token of the batch's lease: with it, a process that has lost the
    lease can no longer write (LeaseLost)."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._storage = Storage(client, project_bytes=None)

    async def create(self, record: BatchRecord, *, held: FileRecord | None = None) -> BatchRecord:
        """Store a new batch, or return the one that has its id already, so that creating twice is the same as once.

        Until its end the bytes of the file `held` count towards the project's storage, once, whether the file is
        deleted or not. Raises NotFound when it has been deleted already.
        """
        found = [keys.batch(record.id), keys.batches(record.project), keys.ACTIVE_BATCHES, keys.SEQUENCE]
        arguments: list[Argument] = [record.id, _encode(record), "" if held is None else held.size_bytes]

        async def attempt(_: int) -> int:
            return int(await self._client.script("create_batch", [*found, *_input_keys(record)], arguments))

        created = await self._storage.claim(record.project, 0, attempt, limited=False)
        if created == _GONE:
            raise NotFound(f"No such File object: {record.input_file_id}", param="input_file_id")
        return record if created else await self.get(record.id)

    async def get(self, batch_id: str, *, project: str | None = None) -> BatchRecord:
        """Raises NotFound when it is unknown or belongs to another project than `project`."""
        return (await self._read(batch_id, project))[0]

    async def list(self, project: str, *, after: str | None, limit: int) -> tuple[Sequence[BatchRecord], bool]:
        """Return a page, newest first, and whether there are more."""
        ids, more = await index.page(self._client, keys.batches(project), after=after, limit=limit)
        return await self.read(ids), more

    async def read(self, ids: Sequence[str]) -> Sequence[BatchRecord]:
        """Return the batches of these ids in the same order, without those that are unknown."""
        raws = await self._client.together([("HGET", keys.batch(one), "record") for one in ids]) if ids else []
        return [_decode(raw) for raw in raws if raw is not None]

    async def active(self) -> Sequence[str]:
        """List ids of the batches that are not at their end, oldest first."""
        return [member.decode() for member in await self._client.call("ZRANGE", keys.ACTIVE_BATCHES, 0, -1)]

    async def update(
        self, batch_id: str, change: Change, *, project: str | None = None, fence: str = ""
    ) -> BatchRecord:
        """Apply `change` to the newest record, again whenever others write meanwhile.

        Raises NotFound, LeaseLost, or TransitionRefused when `change` asks for a state that is not allowed from here.
        """
        while True:
            current, version = await self._read(batch_id, project)
            changed = change(current)
            check_batch_transition(current.status, changed.status)
            if changed == current:
                return current
            outcome = await self._client.script(
                "commit_batch",
                [
                    keys.batch(batch_id),
                    keys.ACTIVE_BATCHES,
                    keys.OUTCOMES,
                    *_input_keys(current),
                ],
                [version, _encode(changed), fence, batch_id, changed.status.value, int(changed.status in ENDED)],
            )
            if outcome == 1:
                return changed
            if outcome == -1:
                raise _unknown(batch_id)
            if outcome == -2:
                raise LeaseLost(f"{batch_id} is worked on by another process now")

    async def _read(self, batch_id: str, project: str | None) -> tuple[BatchRecord, int]:
        raw, version = await self._client.call("HMGET", keys.batch(batch_id), "record", "version")
        record = _decode(raw) if raw is not None else None
        if record is None or (project is not None and record.project != project):
            raise _unknown(batch_id)
        return record, int(version)


def _input_keys(record: BatchRecord) -> Sequence[str]:
    file_id = record.input_file_id
    return keys.file(file_id), keys.file_batches(file_id), keys.project_bytes(record.project)


def _unknown(batch_id: str) -> NotFound:
    return NotFound(f"No batch found with id '{batch_id}'.", param="batch_id")
