"""Large values, read a few at a time."""

from __future__ import annotations

from shared.store.portions import portions


def test_portions_are_small_enough_or_of_one() -> None:
    assert list(portions("abcdefg", [4, 4, 3, 30, 1, 9, 1], most_bytes=10)) == [
        ["a", "b"], ["c"], ["d"], ["e", "f"], ["g"],
    ]  # fmt: skip
    assert list(portions("", [], most_bytes=10)) == []
