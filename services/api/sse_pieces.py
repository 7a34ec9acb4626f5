"""Server-sent events out of the pieces in which a stream arrives."""

from __future__ import annotations

from collections.abc import Iterator


class EventSplitter:
    """Collects pieces and gives the data of each event once it is whole."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yield the `data` of the events that this piece completes; the inference server's have one line of it."""
        *events, self._rest = (self._rest + piece).split(b"\n\n")
        for event in events:
            for line in event.split(b"\n"):
                if line.startswith(b"data: "):
                    yield line[6:]
