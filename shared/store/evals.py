"""Evals by project."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from shared import keys
from shared.errors import NotFound
from shared.eval_records import EvalRecord
from shared.store import index
from shared.store.client import Client

_decode = msgspec.json.Decoder(EvalRecord).decode
_encode = msgspec.json.Encoder().encode


class EvalStore:
    """The only writer of evals."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def create(self, record: EvalRecord) -> EvalRecord:
        """Store a new eval, or return the one that has its id already."""
        created = await self._client.script(
            "create_eval",
            [
                keys.eval_(record.id), keys.evals(record.project), keys.changed_evals(record.project), keys.SEQUENCE,
            ],
            [record.id, _encode(record)],
        )  # fmt: skip
        return record if created else await self.get(record.id, project=record.project)

    async def get(self, eval_id: str, *, project: str) -> EvalRecord:
        """Raises NotFound when it is unknown or belongs to another project."""
        return (await self._read(eval_id, project))[0]

    async def find(self, eval_id: str) -> EvalRecord | None:
        raw = await self._client.call("GET", keys.eval_(eval_id))
        return None if raw is None else _decode(raw)

    async def list(
        self, project: str, *, after: str | None, limit: int, by_change: bool, newest_first: bool
    ) -> tuple[Sequence[EvalRecord], bool]:
        """Return a page by the order of creation, or of the last change, and whether there are more."""
        listing = keys.changed_evals(project) if by_change else keys.evals(project)
        return await index.records(
            self._client, listing, keys.eval_, _decode, after=after, limit=limit, newest_first=newest_first
        )

    async def update(self, eval_id: str, change: Callable[[EvalRecord], EvalRecord], *, project: str) -> EvalRecord:
        """Apply `change` to the newest record, again whenever others write meanwhile. Raises NotFound."""
        while True:
            current, raw = await self._read(eval_id, project)
            changed = change(current)
            found = [keys.eval_(eval_id), keys.changed_evals(project), keys.SEQUENCE]
            if await self._client.script("change_eval", found, [raw, _encode(changed), eval_id]):
                return changed

    async def remove(self, eval_id: str, *, project: str) -> bool:
        """Delete an eval that has no runs; False if there are some."""
        lists = keys.evals(project), keys.changed_evals(project)
        return bool(
            await self._client.script(
                "delete_eval",
                [keys.eval_(eval_id), keys.eval_runs(eval_id), *lists],
                [eval_id, *(keys.place(listing, "") for listing in lists)],
            )
        )

    async def _read(self, eval_id: str, project: str) -> tuple[EvalRecord, bytes]:
        raw = await self._client.call("GET", keys.eval_(eval_id))
        record = _decode(raw) if raw is not None else None
        if record is None or record.project != project:
            raise NotFound(f"No eval found with id '{eval_id[:100]}'.", param="eval_id")
        return record, raw
