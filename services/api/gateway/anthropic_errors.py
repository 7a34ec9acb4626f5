"""Errors of /v1/messages in the words of Anthropic's API: the same statuses and messages in another envelope."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from litestar import Response
from litestar.connection import Request
from litestar.exceptions import HTTPException
from msgspec import Struct

from services.api import errors
from shared.errors import SelftuneError
from shared.schemas.errors import ErrorResponse

E = TypeVar("E", bound=Exception)

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class AnthropicError(Struct, frozen=True, kw_only=True):
    """What went wrong."""

    type: str
    message: str


class AnthropicErrorResponse(Struct, frozen=True, kw_only=True):
    """Body of every error of the Messages API."""

    type: Literal["error"] = "error"
    error: AnthropicError


def _translated(
    shown: Callable[[Request[Any, Any, Any], E], Response[ErrorResponse]],
) -> Callable[[Request[Any, Any, Any], E], Response[AnthropicErrorResponse]]:
    def show(request: Request[Any, Any, Any], error: E) -> Response[AnthropicErrorResponse]:
        ours = shown(request, error)
        return Response(
            AnthropicErrorResponse(
                error=AnthropicError(type=_type(ours.status_code or 500), message=ours.content.error.message)
            ),
            status_code=ours.status_code,
            media_type="application/json",
            headers=ours.headers,
        )

    return show


def _type(status: int) -> str:
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


HANDLERS: dict[int | type[Exception], Any] = {
    SelftuneError: _translated(errors.on_our_error),
    errors.UpstreamError: _translated(errors.on_upstream_error),
    HTTPException: _translated(errors.on_http_exception),
    Exception: _translated(errors.on_unexpected),
}
"""Exception handlers of a route."""
