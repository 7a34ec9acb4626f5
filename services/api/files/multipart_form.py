"""multipart/form-data (RFC 7578), read while it arrives: small fields into memory, the one file into its sink."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import multipart  # type: ignore[import-untyped]
from litestar.connection import Request

from services.api.bodies import UnsupportedMediaType, chunks
from services.api.files.partial import PartialFile
from shared.errors import InvalidRequest

FRAMING_BYTES = 1 << 20
"""Room for boundaries, headers and the small fields beside the file."""
_FIELD_BYTES = 4096
_PARTS = 16


@dataclass(frozen=True)
class Shape:
    """Which parts a form may have. `check` is called with each field's text as soon as it is there."""

    file: str
    fields: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    check: Callable[[str, str], object] = field(default=lambda _name, _text: None)


@dataclass(frozen=True)
class Received:
    """A whole form: the file's name, and the other fields' texts by name."""

    filename: str
    fields: dict[str, str]


async def receive_form(request: Request[Any, Any, Any], shape: Shape, sink: PartialFile, *, limit: int) -> Received:
    """Read a request's form; the file is in `sink` afterwards. `limit` bounds the file in bytes.

    Raises UnsupportedMediaType, InvalidRequest as soon as something is wrong, TooLarge, ClientGone.
    """
    reader = _Reader(_boundary(request), shape, sink)
    async for piece in chunks(request, limit=limit + FRAMING_BYTES):
        await reader.feed(piece)
    return reader.finish()


class _Reader:
    """Parses a body piece by piece; fields and file may come in any order, each once."""

    def __init__(self, boundary: str, shape: Shape, sink: PartialFile) -> None:
        self._parser = multipart.PushMultipartParser(boundary, max_segment_count=_PARTS)
        self._shape = shape
        self._sink = sink
        self._fields: dict[str, bytearray] = {}
        self._filename: str | None = None
        self._current = ""

    async def feed(self, piece: bytes) -> None:
        try:
            for event in self._parser.parse(piece):
                if isinstance(event, multipart.MultipartSegment):
                    self._begin(event)
                elif event is None:
                    await self._end()
                else:
                    await self._take(event)
        except multipart.MultipartError as error:
            raise InvalidRequest(f"The form is malformed: {error}") from error

    def finish(self) -> Received:
        """Check that the form is whole. Raises InvalidRequest."""
        try:
            self._parser.close()
        except multipart.MultipartError as error:
            raise InvalidRequest("The form is malformed: it ends before its closing boundary.") from error
        for name in (*self._shape.required, self._shape.file):
            if name not in self._fields and (name != self._shape.file or self._filename is None):
                raise InvalidRequest(
                    f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name
                )
        assert self._filename is not None
        return Received(self._filename, {name: self._text(name) for name in self._fields})

    def _begin(self, segment: multipart.MultipartSegment) -> None:
        self._current = name = segment.name or ""
        if name in self._fields or (name == self._shape.file and self._filename is not None):
            raise InvalidRequest(f"'{name}' is there twice; send it once.", param=name)
        if name == self._shape.file:
            self._filename = segment.filename or "upload"
        elif name in self._shape.fields:
            self._fields[name] = bytearray()
        else:
            shown = name[:200]
            raise InvalidRequest(f"Unknown parameter: '{shown}'.", code="unknown_parameter", param=shown)

    async def _take(self, data: bytes | bytearray) -> None:
        if self._current == self._shape.file:
            await self._sink.write(data)
            return
        content = self._fields[self._current]
        content += data
        if len(content) > _FIELD_BYTES:
            raise InvalidRequest(f"The value of '{self._current}' is too long.", param=self._current)

    async def _end(self) -> None:
        if self._current == self._shape.file:
            await self._sink.finish()
        else:  # refuse now rather than after eight gigabytes
            self._shape.check(self._current, self._text(self._current))

    def _text(self, name: str) -> str:
        try:
            return self._fields[name].decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"The value of '{name}' is not valid UTF-8.", param=name) from error


def _boundary(request: Request[Any, Any, Any]) -> str:
    kind, options = request.content_type
    boundary = options.get("boundary")
    if kind != "multipart/form-data" or not boundary:
        raise UnsupportedMediaType("Send the file as a form: 'Content-Type: multipart/form-data' with a boundary.")
    return boundary
