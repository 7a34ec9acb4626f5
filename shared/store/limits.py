"""What is left of limits per minute, in token buckets that all API processes share."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from shared.store.client import Client


class Bucket(Struct, frozen=True, kw_only=True):
    """Holds up to `per_minute`, at least 1, and fills evenly."""

    key: str
    owner: str
    """Whose it is, for messages."""
    per_minute: int


class Level(Struct, frozen=True, kw_only=True):
    """How a bucket stands after an attempt to take from it."""

    bucket: Bucket
    left: int
    full_in_ms: int


class Taking(Struct, frozen=True, kw_only=True):
    """What came of an attempt."""

    taken: bool
    retry_in_ms: int | None
    """When the same can be taken at the earliest; None if it is more than a bucket can hold."""
    levels: Sequence[Level]

    @property
    def tightest(self) -> Level:
        return min(self.levels, key=lambda level: level.left)


class LimitStore:
    """Buckets in Redis."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def take(self, buckets: Sequence[Bucket], cost: int) -> Taking:
        """Take `cost` from every bucket, or from none if one holds less; one round trip. `buckets` is not empty."""
        found = await self._client.script(
            "take", [bucket.key for bucket in buckets], [cost, *(bucket.per_minute for bucket in buckets)]
        )
        taken, retry_in_ms, *rest = map(int, found)
        levels = [
            Level(bucket=bucket, left=left, full_in_ms=full)
            for bucket, left, full in zip(buckets, rest[::2], rest[1::2], strict=True)
        ]
        return Taking(taken=bool(taken), retry_in_ms=None if retry_in_ms < 0 else retry_in_ms, levels=levels)
