"""Which projects besides its own may use a fine-tuned model or one of its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from shared import ids, keys
from shared.errors import NotFound
from shared.records import PermissionRecord
from shared.store import index
from shared.store.client import Client

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(PermissionRecord).decode


class PermissionStore:
    """Permissions by model; there are as many as projects at most."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def grant(self, model: str, projects: Sequence[str]) -> Sequence[PermissionRecord]:
        """Let projects use a model; returns their permissions in that order. Granting twice is the same as once."""
        for project in projects:
            record = PermissionRecord(
                id=ids.new_permission_id(),
                project=project,
                created_at=int(time.time()),
                order=await index.next_sequence(self._client),
            )
            await self._client.together(
                [
                    ("HSETNX", keys.permissions(model), project, _encode(record)),
                    ("SADD", keys.shared_models(project), model),
                ]
            )
        granted = {record.project: record for record in await self.list(model)}
        return [granted[project] for project in dict.fromkeys(projects) if project in granted]

    async def list(self, model: str) -> Sequence[PermissionRecord]:
        """Return a model's permissions, oldest first."""
        found = await self._client.call("HVALS", keys.permissions(model))
        return sorted(map(_decode, found), key=lambda record: record.order)

    async def page(
        self, model: str, *, project: str | None, after: str | None, limit: int, newest_first: bool
    ) -> tuple[Sequence[PermissionRecord], bool]:
        """Return a page, of one project's if it is given, and whether there are more.

        Raises NotFound when `after` is no permission of the model and was none within the last hour.
        """
        found = await self.list(model)
        if after is not None:
            place = await self._place(model, found, after)
            found = [one for one in found if (one.order < place if newest_first else one.order > place)]
        wanted = [one for one in found[:: -1 if newest_first else 1] if project in (None, one.project)]
        return wanted[:limit], len(wanted) > limit

    async def _place(self, model: str, found: Sequence[PermissionRecord], permission_id: str) -> int:
        for record in found:
            if record.id == permission_id:
                return record.order
        return int(await index.former_place(self._client, keys.permissions(model), permission_id))

    async def revoke(self, model: str, permission_id: str) -> None:
        """Take a permission back; the project's requests are refused from the next one on. Raises NotFound."""
        for record in await self.list(model):
            if record.id == permission_id:
                await self._client.together(
                    [
                        ("HDEL", keys.permissions(model), record.project),
                        ("SET", keys.place(keys.permissions(model), record.id), record.order, "EX", index.REMEMBER_S),
                        ("SREM", keys.shared_models(record.project), model),
                    ]
                )
                return
        raise NotFound(f"No such checkpoint permission: {permission_id}", param="permission_id")
