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

    async def revoke(self, model: str, permission_id: str) -> None:
        """Take a permission back; the project's requests are refused from the next one on. Raises NotFound."""
        for record in await self.list(model):
            if record.id == permission_id:
                await self._client.together(
                    [
                        ("HDEL", keys.permissions(model), record.project),
                        ("SREM", keys.shared_models(record.project), model),
                    ]
                )
                return
        raise NotFound(f"No such checkpoint permission: {permission_id}", param="permission_id")
