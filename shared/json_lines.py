"""JSON Lines files: one value a line, UTF-8, read a line at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_MAX_LINE_BYTES = 64 << 20


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line) of the lines that are not blank.

    A line that is too long comes in pieces, so that it never fills the memory; check_text() refuses them.
    """
    with path.open("rb") as handle:
        for number, line in enumerate(iter(lambda: handle.readline(_MAX_LINE_BYTES + 1), b""), 1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if text.strip():
                yield number, text


def check_text(line: bytes) -> bytes:
    """Return the line; raises ValueError when it is too long or not UTF-8."""
    if len(line) > _MAX_LINE_BYTES:
        raise ValueError(f"longer than {_MAX_LINE_BYTES} bytes")
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    return line
