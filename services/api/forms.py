"""The upload form, read while it arrives: small fields into memory, the file into its sink."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import multipart  # type: ignore[import-untyped]

from services.api.partial import PartialFile
from shared.errors import InvalidRequest
from shared.schemas.files import FilePurpose, UploadPurpose

PURPOSES: tuple[UploadPurpose, ...] = get_args(UploadPurpose)
EXPIRY_RANGE_S = range(3600, 2_592_000 + 1)

_FILE = "file"
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_FIELDS = frozenset({"purpose", _ANCHOR, _SECONDS})
_FIELD_BYTES = 4096
_PARTS = 16


@dataclass(frozen=True)
class Form:
    """A whole and valid upload form."""

    filename: str
    purpose: FilePurpose
    expires_after_s: int | None


class FormReader:
    """Parses a multipart body piece by piece; fields and file may come in any order."""

    def __init__(self, boundary: str, sink: PartialFile) -> None:
        self._parser = multipart.PushMultipartParser(boundary, max_segment_count=_PARTS)
        self._sink = sink
        self._fields: dict[str, bytearray] = {}
        self._filename: str | None = None
        self._current = ""

    async def feed(self, piece: bytes) -> None:
        """Take the next bytes of the body. Raises InvalidRequest as soon as something is wrong, TooLarge."""
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

    def finish(self) -> Form:
        """Check that the form is whole. Raises InvalidRequest."""
        try:
            self._parser.close()
        except multipart.MultipartError as error:
            raise InvalidRequest("The form is malformed: it ends before its closing boundary.") from error
        purpose = self._purpose()
        if self._filename is None:
            raise InvalidRequest("Missing required parameter: 'file'.", code="missing_required_parameter", param=_FILE)
        return Form(self._filename, purpose, self._expiry())

    def _begin(self, segment: multipart.MultipartSegment) -> None:
        self._current = name = segment.name or ""
        if name == _FILE:
            if self._filename is not None:
                raise InvalidRequest("Send one file at a time: 'file' is there twice.", param=_FILE)
            self._filename = segment.filename or "upload"
        elif name in _FIELDS:
            self._fields[name] = bytearray()
        else:
            shown = name[:200]
            raise InvalidRequest(f"Unknown parameter: '{shown}'.", code="unknown_parameter", param=shown)

    async def _take(self, data: bytes | bytearray) -> None:
        if self._current == _FILE:
            await self._sink.write(data)
            return
        field = self._fields[self._current]
        field += data
        if len(field) > _FIELD_BYTES:
            raise InvalidRequest(f"The value of '{self._current}' is too long.", param=self._current)

    async def _end(self) -> None:
        if self._current == _FILE:
            await self._sink.finish()
        elif self._current == "purpose":
            self._purpose()  # refuse now rather than after eight gigabytes

    def _text(self, name: str) -> str | None:
        raw = self._fields.get(name)
        try:
            return None if raw is None else raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"The value of '{name}' is not valid UTF-8.", param=name) from error

    def _purpose(self) -> FilePurpose:
        given = self._text("purpose")
        if given is None:
            raise InvalidRequest(
                "Missing required parameter: 'purpose'.", code="missing_required_parameter", param="purpose"
            )
        for purpose in PURPOSES:
            if given == purpose:
                return purpose
        raise InvalidRequest(
            f"'{given[:100]}' is not one of {list(PURPOSES)} - 'purpose'", code="invalid_value", param="purpose"
        )

    def _expiry(self) -> int | None:
        anchor, seconds = self._text(_ANCHOR), self._text(_SECONDS)
        if anchor is None and seconds is None:
            return None
        if anchor != "created_at":
            raise InvalidRequest(
                "'expires_after[anchor]' must be 'created_at'.", code="invalid_value", param="expires_after.anchor"
            )
        if not seconds or not seconds.isascii() or not seconds.isdigit() or len(seconds) > 10:
            seconds = "-1"
        if int(seconds) not in EXPIRY_RANGE_S:
            raise InvalidRequest(
                f"'expires_after[seconds]' must be a whole number from {EXPIRY_RANGE_S[0]} to {EXPIRY_RANGE_S[-1]}.",
                code="invalid_value",
                param="expires_after.seconds",
            )
        return int(seconds)
