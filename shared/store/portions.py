"""Large values, read a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

MAX_PORTION_BYTES = 8 << 20


def portions(ids: Sequence[T], sizes: Sequence[int], *, most_bytes: int) -> Iterator[Sequence[T]]:
    """Split ids in their order, so that those of a portion have `most_bytes` together at most, or one is alone."""
    portion: list[T] = []
    total = 0
    for one, size in zip(ids, sizes, strict=True):
        if portion and total + size > most_bytes:
            yield portion
            portion, total = [], 0
        portion.append(one)
        total += size
    if portion:
        yield portion
