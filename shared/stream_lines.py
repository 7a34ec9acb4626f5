"""Lines of a stream of server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator


async def stream_lines(pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Give each line that ends with a line feed, without it, as soon as it is whole.

    HTTP clients offer this for text, and split at whatever Unicode calls a line's end. JSON leaves three of those as
    they are inside a string (U+0085, U+2028, U+2029), and a model may write them.
    """
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line
