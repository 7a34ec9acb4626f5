"""JSON Lines files: one value a line, UTF-8, read in blocks of whole lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

BLOCK_BYTES = 64 << 10
"""Small enough that what is decoded of it stays in the processor's cache, large enough that the calls do not count."""
MAX_LINE_BYTES = 64 << 20
_BOM = b"\xef\xbb\xbf"


def read_blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number of its first line from 1, block of whole lines).

    A line that is longer than MAX_LINE_BYTES ends its block and is cut behind that length: check_text() refuses it.
    Memory: a block and the longest line.
    """
    number = 1
    with path.open("rb") as handle:
        while block := handle.read(BLOCK_BYTES):
            if not block.endswith(b"\n"):
                rest = handle.readline(MAX_LINE_BYTES + 1)
                block += rest
                while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
                    rest = handle.readline(MAX_LINE_BYTES + 1)
            yield number, block.removeprefix(_BOM) if number == 1 else block
            number += block.count(b"\n") + (not block.endswith(b"\n"))


def split_lines(number: int, block: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (line number, line) of the lines that are not blank; the block's first line has `number`."""
    for position, line in enumerate(block.split(b"\n"), number):
        if line and not line.isspace():
            yield position, line


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line) of the lines that are not blank."""
    for number, block in read_blocks(path):
        yield from split_lines(number, block)


def check_text(line: bytes) -> bytes:
    """Return the line; raises ValueError when it is too long or not UTF-8."""
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"longer than {MAX_LINE_BYTES} bytes")
    if line.isascii():
        return line
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    return line
