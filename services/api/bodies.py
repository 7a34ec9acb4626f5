"""Reading request bodies: in bounded pieces, and as strictly typed JSON whose errors name the field."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import msgspec
from litestar.connection import Request

from shared.errors import InvalidRequest, TooLarge

T = TypeVar("T")

_IDLE_S = 120.0
"""A client that sends nothing for so long in the middle of a body is taken for gone."""

_PLACE = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`\Z")
_FIELD = re.compile(r"\AObject (?P<fault>missing required|contains unknown) field `(?P<name>.*)`\Z", re.DOTALL)


class ClientGone(Exception):
    """The client closed the connection; nobody reads an answer."""


class UnsupportedMediaType(InvalidRequest):
    """The body is of another kind than the route takes."""

    default_code = "unsupported_media_type"


async def chunks(request: Request[Any, Any, Any], *, limit: int) -> AsyncIterator[bytes]:
    """Yield the body in pieces as they arrive. Raises TooLarge beyond `limit` bytes, ClientGone when it is cut off."""
    announced = request.headers.get("content-length", "")
    _check_size(int(announced) if announced.isdecimal() else 0, limit)
    received, more = 0, True
    while more:
        piece, more = await _next_piece(request)
        received += len(piece)
        _check_size(received, limit)
        if piece:
            yield piece


def _check_size(size_bytes: int, limit: int) -> None:
    if size_bytes > limit:
        raise TooLarge(f"The request body is larger than the {limit:,} bytes that this server accepts.")


async def _next_piece(request: Request[Any, Any, Any]) -> tuple[bytes, bool]:
    try:
        async with asyncio.timeout(_IDLE_S):
            message = await request.receive()
    except TimeoutError as error:
        raise ClientGone from error
    if message["type"] != "http.request":
        raise ClientGone
    return message["body"], message["more_body"]


async def read_json(request: Request[Any, Any, Any], *, limit: int) -> bytes:
    """Return a JSON request's whole body, not decoded. Raises UnsupportedMediaType, TooLarge, ClientGone."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise UnsupportedMediaType(f"The body is '{kind[:100]}'; send JSON with 'Content-Type: application/json'.")
    return b"".join([piece async for piece in chunks(request, limit=limit)])


def decode(raw: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Decode a body. Raises InvalidRequest that names the field, as in `method.supervised.hyperparameters.n_epochs`."""
    if not raw.strip():
        raise InvalidRequest("The request body is empty; a JSON object is expected.")
    try:
        raw.decode("utf-8")  # fields that the decoder skips are not checked otherwise
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise explain(str(error)) from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The request body is not valid UTF-8: byte {error.start} is wrong.") from error
    except RecursionError as error:
        raise InvalidRequest("The request body is nested too deeply.") from error
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"The request body is not valid JSON: {error}") from error


def explain(text: str) -> InvalidRequest:
    """Turn msgspec's words, such as "Expected `int` >= 0 - at `$.seed`", into OpenAI's."""
    place = _PLACE.search(text)
    path = place["path"].removesuffix("[...]") if place else ""
    fault = text[: place.start()] if place else text
    if field := _FIELD.match(fault):
        name = ".".join(filter(None, [path, field["name"][:200]]))
        if field["fault"] == "contains unknown":
            return InvalidRequest(f"Unknown parameter: '{name}'.", code="unknown_parameter", param=name)
        return InvalidRequest(f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name)
    fault = fault[:1].lower() + fault[1:500]
    subject = f"'{path}'" if path else "the request body"
    return InvalidRequest(f"Invalid value for {subject}: {fault}.", code="invalid_value", param=path or None)
