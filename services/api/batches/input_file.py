"""The input of a batch: one request a line, each checked before the first is sent."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec
from msgspec import Meta, Raw, Struct

from services.api.bodies import explain
from shared.schemas.batches import BatchEndpoint, BatchError

MAX_REQUESTS = 50_000
_MAX_ERRORS = 100
"""Reading stops there: a file with so many wrong lines was made wrong."""


class _Body(Struct, frozen=True):
    model: str


class _Line(Struct, frozen=True):
    """A line as far as it is checked; whether the rest of the body is right, the endpoint says."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=512)]
    method: str
    url: str
    body: _Body


class Request(Struct, frozen=True):
    """A line as far as it is worked on."""

    custom_id: str
    body: Raw

    @property
    def model(self) -> str:
        return _decode_body(self.body).model


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_body = msgspec.json.Decoder(_Body).decode
_decode_request = msgspec.json.Decoder(Request).decode


@dataclass
class InputFile:
    """What was found in the file. Requests have numbers from 0, in the file's order."""

    path: Path
    places: list[tuple[int, int]] = field(default_factory=list)
    """Of each request where its line begins, and how long it is, in bytes."""
    models: set[str] = field(default_factory=set)
    errors: list[BatchError] = field(default_factory=list)

    def request(self, number: int) -> Request:
        """Read one request of a file without errors."""
        offset, length = self.places[number]
        with self.path.open("rb") as handle:
            handle.seek(offset)
            return _decode_request(handle.read(length))


def read_input(path: Path, endpoint: BatchEndpoint, *, max_line_bytes: int) -> InputFile:
    """Read and check a whole file. Raises FileNotFoundError.

    Lines of white space alone are skipped; those beyond `max_line_bytes` are refused, as they are at the endpoint.
    """
    found, seen, offset = InputFile(path), set[str](), 0
    with path.open("rb") as handle:
        for number, (line, length) in enumerate(_lines(handle, max_line_bytes), start=1):
            if line.strip() or length > len(line):
                fault = _fault(line, endpoint, seen, found.models, max_line_bytes)
                found.places.append((offset, length))
                if fault is not None:
                    found.errors.append(msgspec.structs.replace(fault, line=number))
            offset += length
            if len(found.errors) >= _MAX_ERRORS or len(found.places) > MAX_REQUESTS:
                break
    if not found.places:
        found.errors.append(BatchError(code="empty_file", message="The file has no requests.", param="input_file_id"))
    if len(found.places) > MAX_REQUESTS:
        message = f"The file has more than {MAX_REQUESTS:,} requests; make several batches of it."
        found.errors.append(BatchError(code="too_many_tasks", message=message, param="input_file_id"))
    return found


def _lines(handle: BinaryIO, most: int) -> Iterator[tuple[bytes, int]]:
    """Yield each line and its length in bytes; of one that is longer than `most`, the first `most` + 1 bytes."""
    room = min(most + 1, sys.maxsize)
    while line := handle.readline(room):
        length, piece = len(line), line
        while len(piece) > most and not piece.endswith(b"\n"):
            piece = handle.readline(room)
            length += len(piece)
        yield line, length


def _fault(raw: bytes, endpoint: BatchEndpoint, seen: set[str], models: set[str], max_bytes: int) -> BatchError | None:
    """Say what is wrong with a line, or take note of its id and model."""
    if len(raw) > max_bytes:
        return BatchError(code="line_too_long", message=f"The line has more than {max_bytes:,} bytes.")
    try:
        raw.decode("utf-8")
        line = _decode_line(raw)
    except msgspec.ValidationError as error:
        refusal = explain(str(error))
        return BatchError(code=refusal.code or "invalid_value", message=refusal.message, param=refusal.param)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return BatchError(code="invalid_json_line", message="This line is not parseable as valid JSON.")
    if line.method != "POST":
        message = f"Invalid value for 'method': '{line.method[:100]}'; expected 'POST'."
        return BatchError(code="invalid_method", message=message, param="method")
    if line.url != endpoint:
        message = f"Invalid value for 'url': '{line.url[:100]}'; the batch is for '{endpoint}'."
        return BatchError(code="url_mismatch", message=message, param="url")
    if line.custom_id in seen:
        message = f"The custom_id '{line.custom_id}' was used on a line before; every request needs its own."
        return BatchError(code="duplicate_custom_id", message=message, param="custom_id")
    seen.add(line.custom_id)
    models.add(line.body.model)
    return None
