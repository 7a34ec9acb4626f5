"""Files of rows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.api.evals import sources
from shared.errors import InvalidRequest, RateLimited


async def lines(*texts: bytes) -> AsyncIterator[bytes]:
    for text in texts:
        yield text


async def has_room(size: int) -> None:
    if size > 12:
        raise RateLimited("full")


def test_rows_that_are_there_stay(tmp_path: Path) -> None:
    path = tmp_path / "evalrun_1" / "rows.jsonl"
    for text in (b"first\n", b"second\n"):
        assert asyncio.run(sources._write(path, lines(text, b"more\n"), has_room)) == len(text) + 5
    assert path.read_bytes() == b"first\nmore\n"
    assert list(path.parent.iterdir()) == [path]


def test_rows_that_are_too_large_together_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 9)
    path = tmp_path / "evalrun_1" / "rows.jsonl"
    with pytest.raises(InvalidRequest) as refused:
        asyncio.run(sources._write(path, lines(b"first\n", b"more\n"), has_room))
    assert (refused.value.code, refused.value.param) == ("file_too_large", "data_source.source")
    assert list(path.parent.iterdir()) == []


def test_rows_without_room_leave_nothing(tmp_path: Path) -> None:
    path = tmp_path / "evalrun_1" / "rows.jsonl"
    with pytest.raises(RateLimited):
        asyncio.run(sources._write(path, lines(b"first\n", b"second\n"), has_room))
    assert list(path.parent.iterdir()) == []
