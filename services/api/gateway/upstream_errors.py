"""An inference server's errors, brought into OpenAI's envelope."""

from __future__ import annotations

import re
from typing import Any

import httpx2
import msgspec
import structlog
from msgspec.structs import replace

from services.api.errors import INVALID_REQUEST, SERVER_ERROR, UpstreamError
from shared.schemas.errors import ErrorBody

_log = structlog.get_logger()

_READ_BYTES = 64 << 10
_MESSAGE_CHARS = 2000
_NOT_OURS = frozenset({401, 403, 405})
"""Statuses that speak of gateway and replica, not of the client's request."""

_OF_THE_SERVER = frozenset({500, 502, 503, 504})
"""Statuses that say more of the server than of the request."""
_ADAPTER_UNAVAILABLE = "adapter_unavailable"
"""Code of a 422: the server cannot serve the model's adapter, whose file may be damaged on its machine alone."""
_CAPACITY_EXCEEDED = "capacity_exceeded"
"""Code of a 503: the request has waited at the server for as long as one may."""

_VALIDATION = re.compile(r"'loc': '(?P<place>[^']+)', 'msg': (?P<quote>['\"])(?P<fault>.*?)(?P=quote)(?:, '|\})")
"""How vLLM writes the first fault that its request types have found."""
_OPTION = re.compile(r" \(parameter=[^()]*\)\Z")


class _Loose(msgspec.Struct):
    """The shapes in which servers write errors: {"error": {…}}, {"error": "…"}, {"detail": …}, {"message": "…"}."""

    error: Any = None
    detail: Any = None
    message: Any = None


def unreadable() -> UpstreamError:
    """Form the error for an answer that is not what it should be."""
    message = "The inference server's answer could not be read."
    return UpstreamError(502, ErrorBody(message=message, type=SERVER_ERROR, code="upstream_error"))


async def shape(response: httpx2.Response) -> UpstreamError:
    """Read an error response and form the client's. 4xx keep their status; 503 and 429 too, other 5xx become 502."""
    raw = await _read(response)
    status = response.status_code
    if status in (429, 503):
        return UpstreamError(status, _body(raw, SERVER_ERROR), retry_after_s=_retry_after(response))
    if 400 <= status < 500 and status not in _NOT_OURS:
        return UpstreamError(status, _body(raw, INVALID_REQUEST))
    _log.error("gateway.upstream_failed", status=status)
    message = "The inference server failed on this request; please try again."
    return UpstreamError(502, ErrorBody(message=message, type=SERVER_ERROR, code="upstream_error"))


def is_servers_failure(error: UpstreamError) -> bool:
    """Whether an error speaks of server and model, and not of the request."""
    return error.status >= 500 or error.body.code == _ADAPTER_UNAVAILABLE


def may_go_well_elsewhere(status: int, error: UpstreamError) -> bool:
    """Whether another server may answer a request that one refused; `status` is that server's own."""
    if error.body.code == _ADAPTER_UNAVAILABLE:
        return True
    return status in _OF_THE_SERVER and error.body.code != _CAPACITY_EXCEEDED


async def _read(response: httpx2.Response) -> bytes:
    raw = bytearray()
    try:
        async for piece in response.aiter_raw():
            raw += piece
            if len(raw) > _READ_BYTES:
                break
    except httpx2.TransportError as error:
        _log.warning("gateway.error_cut", reason=type(error).__name__)
    return bytes(raw)


def _body(raw: bytes, type: str) -> ErrorBody:
    fields = _fields(raw)
    message = fields.get("message")
    code = fields.get("code")
    param = fields.get("param")
    return _reworded(
        ErrorBody(
            message=message if isinstance(message, str) and message else "The request was refused.",
            type=type,
            # vLLM repeats the HTTP status as code; OpenAI's codes are names
            code=code if isinstance(code, str) and not code.isdigit() else None,
            param=param.removeprefix("body.") if isinstance(param, str) else None,
        )
    )


def _reworded(error: ErrorBody) -> ErrorBody:
    """Say in terms of OpenAI's API what vLLM says in terms of its own classes and options."""
    message = error.message
    if found := _VALIDATION.search(message):
        param = found["place"].removeprefix("body.")
        return replace(error, message=f"Invalid value for '{param}': {found['fault']}.", param=param)
    if "--enable-auto-tool-choice" in message:
        message = (
            "This server does not know how this model writes tool calls; name a tool or 'required' in 'tool_choice', "
            "or have the operator set tool_call_parser."
        )
        return replace(error, message=message, param="tool_choice", code="unsupported_parameter")
    message = _OPTION.sub("", message)[:_MESSAGE_CHARS]
    if error.param == "input_tokens":
        return replace(error, message=message, param=None, code="context_length_exceeded")
    return replace(error, message=message)


def _fields(raw: bytes) -> dict[str, Any]:
    try:
        loose = msgspec.json.decode(raw, type=_Loose)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    if isinstance(loose.error, dict):
        return loose.error
    texts = (text for text in (loose.error, loose.message, _detail(loose.detail)) if isinstance(text, str))
    return {"message": next(texts, None)}


def _detail(detail: Any) -> str | None:
    """Read FastAPI's `detail`: a text, or a list of {"loc": […], "msg": "…"}."""
    if isinstance(detail, list):
        first = detail[0] if detail and isinstance(detail[0], dict) else {}
        place = ".".join(str(part) for part in first.get("loc", []) if part != "body")
        return f"Invalid value for '{place}': {first.get('msg')}" if first else None
    return detail if isinstance(detail, str) else None


def _retry_after(response: httpx2.Response) -> int:
    given = response.headers.get("retry-after", "")
    return min(int(given), 120) if given.isascii() and given.isdigit() and len(given) < 6 else 1
