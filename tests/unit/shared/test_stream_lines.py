from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from shared.stream_lines import stream_lines


def lines(data: bytes, size: int) -> list[bytes]:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), size):
            yield data[start : start + size]

    async def story() -> list[bytes]:
        return [line async for line in stream_lines(pieces())]

    return asyncio.run(story())


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_only_line_feeds_end_a_line(size: int) -> None:
    text = "a\u0085b\u2028c\u2029d\x0b\r"
    event = b"data: " + msgspec.json.encode({"text": text})
    (first, blank, last) = lines(event + b"\n\ndata: [DONE]\n", size)
    assert msgspec.json.decode(first.removeprefix(b"data: ")) == {"text": text}
    assert (blank, last) == (b"", b"data: [DONE]")


def test_what_has_no_end_is_no_line() -> None:
    assert lines(b"data: {}\ndata: {", 4) == [b"data: {}"]
