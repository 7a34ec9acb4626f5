"""Server-sent events out of the pieces in which a stream arrives."""

from __future__ import annotations

_END = b"\n\n"
_DATA = b"data: "


class EventSplitter:
    """Collects pieces and gives each event once it is whole."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the events that this piece completes, with the blank line that ends each."""
        *events, self._rest = (self._rest + piece).split(_END)
        return [event + _END for event in events]


def data_of(event: bytes) -> bytes | None:
    """Return an event's data, of which the inference server's have one line; None for a comment."""
    return next((line[len(_DATA) :] for line in event.split(b"\n") if line.startswith(_DATA)), None)
