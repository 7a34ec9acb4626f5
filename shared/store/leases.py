"""Who works on a job or batch: a key that expires unless its holder keeps renewing it, and a token that fences.

The token of the last claim is kept in the hash of the job or batch as its `owner`, and each write of a worker is
compared with it, in the same step (M. Kleppmann, "How to do distributed locking", 2016). An expired lease may be
claimed by others; until one does, its holder is still the only one, and takes it again by renewing it. Where the clock
was put back, a lease that nobody renews ends all the same: whoever looks at it shortens it to its usual time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from shared import ids, keys
from shared.errors import LeaseLost
from shared.store.client import Argument, Client


class LeaseStore:
    """Leases on jobs, or on what else `key` and `owned`, the hash, name."""

    def __init__(
        self,
        client: Client,
        *,
        ttl_s: float,
        key: Callable[[str], str] = keys.job_lease,
        owned: Callable[[str], str] = keys.job,
    ) -> None:
        self._client = client
        self._key = key
        self._owned = owned
        self.ttl_s = ttl_s
        self._ttl_ms = int(ttl_s * 1000)

    async def claim(self, object_id: str) -> str | None:
        """Return a token, or None while somebody else holds it, or when there is no such job.

        A token is `{n}-{random}`, where n counts the claims of the job or batch: the later one is the larger.
        """
        token = await self._client.script("claim_lease", self._keys(object_id), [ids.new_token(), self._ttl_ms])
        return None if token is None else str(token.decode())

    async def renew(self, object_id: str, token: str) -> None:
        """Hold it for another period. Raises LeaseLost if somebody else claimed it meanwhile."""
        if not await self._client.script("renew_lease", self._keys(object_id), [token, self._ttl_ms]):
            raise LeaseLost(f"{object_id} is owned by another worker now")

    async def release(self, object_id: str, token: str) -> None:
        """Give it back; nothing happens if the lease was lost before."""
        await self._client.script("renew_lease", self._keys(object_id), [token, 0])

    async def held(self, object_id: str) -> bool:
        """Tell whether anybody holds it."""
        return bool(await self._client.script("is_leased", [self._key(object_id)], [self._ttl_ms]))

    def _keys(self, object_id: str) -> list[str]:
        return [self._key(object_id), self._owned(object_id)]


async def owners_only(client: Client, job_id: str, fence: str, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
    """Run several commands as one transaction, if `fence` is the token of the job's owner, or "".

    Raises LeaseLost.
    """
    if not fence:
        return await client.together(commands)
    words = [[word.decode() if isinstance(word, bytes) else str(word) for word in command] for command in commands]
    answers = await client.script("owners_only", [keys.job(job_id)], [fence, msgspec.json.encode(words)])
    if answers == -2:
        raise LeaseLost(f"{job_id} is owned by another worker now")
    return list(answers)
