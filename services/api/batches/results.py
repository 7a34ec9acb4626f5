"""What has been answered of a batch, on disk before it is counted.

Every process that works on the batch writes a segment of its own and reads those of the ones before it. So a process
that was given up and wakes up again spoils nothing, and the torn line of one that was killed stays the last of its
segment. Of two results for one request the first counts.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path

import msgspec
import structlog
from msgspec import Raw, Struct

from shared.paths import fsync_folder
from shared.schemas.batches import BatchUsage

_log = structlog.get_logger()


class Result(Struct, frozen=True, kw_only=True):
    """A line of a segment: the request's number, and the line that goes into the output or the error file."""

    number: int
    failed: bool
    usage: BatchUsage = BatchUsage()
    line: Raw


class _Place(Struct, frozen=True):
    segment: Path
    offset: int
    length: int
    failed: bool


_decode = msgspec.json.Decoder(Result).decode
_encode = msgspec.json.Encoder().encode


class Results:
    """The results in `folder`. Its methods block; `append` may be called from several threads."""

    def __init__(self, folder: Path, token: str) -> None:
        self._folder = folder
        self._token = token
        self._places: dict[int, _Place] = {}
        self._handle: FileIO | None = None
        self._lock = threading.Lock()
        self.completed = 0
        self.failed = 0
        self.usage = BatchUsage()

    @classmethod
    def load(cls, folder: Path, token: str) -> Results:
        """Read what earlier processes have left."""
        folder.mkdir(parents=True, exist_ok=True)
        results = cls(folder, token)
        for segment in sorted(folder.glob("*.jsonl")):
            results._read(segment)
        return results

    def __contains__(self, number: object) -> bool:
        return number in self._places

    def __len__(self) -> int:
        return len(self._places)

    def append(self, results: Sequence[Result]) -> None:
        """Write results to disk, then count them; those of requests that have one are left out. Raises OSError."""
        with self._lock:
            fresh: dict[int, Result] = {}
            for result in results:
                if result.number not in self._places:
                    fresh.setdefault(result.number, result)
            if not fresh:
                return
            lines = [_encode(result) + b"\n" for result in fresh.values()]
            segment, offset = self._write(b"".join(lines))
            for result, line in zip(fresh.values(), lines, strict=True):
                self._count(result, _Place(segment, offset, len(line), result.failed))
                offset += len(line)

    def lines(self, *, failed: bool) -> Iterator[bytes]:
        """Yield the lines of the output or the error file, in the order of the input."""
        for _, place in sorted(self._places.items()):
            if place.failed is failed:
                with place.segment.open("rb") as handle:
                    handle.seek(place.offset)
                    yield bytes(_decode(handle.read(place.length)).line) + b"\n"

    def cut(self) -> Path | None:
        """End the segment that was written to, if any, and return it: it will not change any more."""
        with self._lock:
            segment = None if self._handle is None else Path(self._handle.name)
            self._leave_segment()
            return segment

    def close(self) -> None:
        with self._lock:
            self._leave_segment()

    def _write(self, data: bytes) -> tuple[Path, int]:
        """Put data on disk; return the segment, and where in it they begin."""
        handle = self._handle = self._handle or self._open()
        offset = handle.tell()
        try:
            view = memoryview(data)
            while view:  # an unbuffered write may take only a part
                view = view[handle.write(view) :]
            os.fsync(handle.fileno())
        except OSError:
            self._leave_segment()  # what was half written must stay the end of its segment
            raise
        return Path(handle.name), offset

    def _leave_segment(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _open(self) -> FileIO:
        number = len(list(self._folder.glob("*.jsonl"))) + 1
        handle = (self._folder / f"{number:06d}.{self._token}.jsonl").open("xb", buffering=0)
        fsync_folder(self._folder)
        return handle

    def _read(self, segment: Path) -> None:
        offset = 0
        with segment.open("rb") as handle:
            for line in handle:
                if line.endswith(b"\n"):
                    self._take(line, segment, offset)
                offset += len(line)

    def _take(self, line: bytes, segment: Path, offset: int) -> None:
        try:
            result = _decode(line)
        except msgspec.MsgspecError:  # a power cut may leave zeros; the request is asked again
            _log.warning("batch.damaged_result", segment=segment.name, offset=offset)
            return
        if result.number not in self._places:
            self._count(result, _Place(segment, offset, len(line), result.failed))

    def _count(self, result: Result, place: _Place) -> None:
        self._places[result.number] = place
        self.completed += not result.failed
        self.failed += result.failed
        self.usage += result.usage
