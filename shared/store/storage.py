"""How many bytes a project keeps on this server, and whether it has room for more.

Its files count, its fine-tuned models, its stored completions and responses, its preferences and eval runs, the parts
of its uploads under way, and files that were deleted while batches or eval runs hold their bytes. The scripts that
store and remove them count in the same step; what has expired is given back when somebody asks, or when there is no
room.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from shared import keys
from shared.errors import RateLimited
from shared.projects import ProjectRecord
from shared.store.client import Client

_decode_project = msgspec.json.Decoder(ProjectRecord).decode

STORAGE_FULL = "storage_limit_exceeded"
"""Code of the error where a project has no room; waiting alone does not end it."""
_NO_ROOM = -1
_NEVER_COUNTED = -2


class Storage:
    """`project_bytes` is the limit of projects that have none of their own, 0 for no limit; None counts only."""

    def __init__(self, client: Client, *, project_bytes: int | None) -> None:
        self._client = client
        self._project_bytes = project_bytes

    async def claim(
        self, project: str, size_bytes: int, attempt: Callable[[int], Awaitable[int]], *, limited: bool = True
    ) -> int:
        """Return what `attempt` returns: a script that counts, given the default limit in bytes or -1 for none at all.

        Raises RateLimited when it says that the project has no room.
        """
        limit = self._project_bytes if limited and self._project_bytes is not None else -1
        outcome = await attempt(limit)
        if outcome in (_NEVER_COUNTED, _NO_ROOM):
            await self.used_bytes(project)
            outcome = await attempt(limit)
        if outcome == _NO_ROOM:
            raise _no_room(size_bytes)
        return outcome

    async def check_room(self, project: str, size_bytes: int, *, param: str | None = None) -> None:
        """Raises RateLimited, which names `param`, when `size_bytes` more would not fit now; `claim` decides."""
        if self._project_bytes is None:
            return
        raw = await self._client.call("GET", keys.project(project))
        own = _decode_project(raw).limits.storage_bytes if raw is not None else None
        limit = self._project_bytes if own is None else own
        if limit and await self.used_bytes(project) + size_bytes > limit:
            raise _no_room(size_bytes, param)

    async def used_bytes(self, project: str) -> int:
        """Return how many bytes a project keeps."""
        found = [keys.files(project), keys.project_bytes(project), keys.models(project), keys.answers(project)]
        while (used := int(await self._client.script("count_files", found, [keys.file(""), keys.adapter("")]))) < 0:
            pass
        return used


def _no_room(size_bytes: int, param: str | None = None) -> RateLimited:
    instead = "send 'store': false, delete" if param == "store" else "delete"
    return RateLimited(
        f"The project's storage has no room for {size_bytes:,} bytes more; {instead} files, models, stored answers, "
        "preferences or eval runs, or have its limit raised.",
        code=STORAGE_FULL,
        param=param,
    )
