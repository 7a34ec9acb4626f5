"""From exceptions to HTTP: one table of ours, and OpenAI's envelope around everything else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import structlog
from litestar import Response
from litestar.connection import Request
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException, ValidationException

from services.api.bodies import ClientGone, UnsupportedMediaType
from shared import errors
from shared.schemas.errors import ErrorBody, ErrorResponse

_log = structlog.get_logger()

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"


@dataclass(frozen=True)
class Rule:
    """How a class of errors is shown."""

    status: int
    type: str = INVALID_REQUEST
    retry_after_s: int | None = None
    never_retry: bool = False
    """Tell OpenAI's SDK, by `x-should-retry`, not to repeat a request whose status it would repeat."""


TABLE: dict[type[errors.SelftuneError], Rule] = {
    errors.SelftuneError: Rule(500, SERVER_ERROR),
    errors.InvalidRequest: Rule(400),
    UnsupportedMediaType: Rule(415),
    errors.NotAuthenticated: Rule(401),
    errors.PermissionDenied: Rule(403),
    errors.NotFound: Rule(404),
    # Not 409: OpenAI's SDK takes that for a lock and sends the request twice more before it tells its caller.
    errors.Conflict: Rule(400),
    errors.TransitionRefused: Rule(400),
    errors.IdempotencyConflict: Rule(409, never_retry=True),
    errors.TooLarge: Rule(413),
    errors.RateLimited: Rule(429, "rate_limit_error"),
    errors.AdapterRejected: Rule(400),
    errors.InvalidTrainingData: Rule(400),
    errors.Unavailable: Rule(503, SERVER_ERROR, retry_after_s=1),
    errors.StoreUnavailable: Rule(503, SERVER_ERROR, retry_after_s=1),
    errors.KeySecretMismatch: Rule(503, SERVER_ERROR, retry_after_s=30),
    errors.StorageUnavailable: Rule(503, SERVER_ERROR, retry_after_s=1),
    errors.NoReplica: Rule(503, SERVER_ERROR, retry_after_s=2),
    errors.ReplicaLost: Rule(503, SERVER_ERROR, retry_after_s=2),
    errors.SchemaTooNew: Rule(503, SERVER_ERROR, retry_after_s=60),
    errors.LeaseLost: Rule(503, SERVER_ERROR, retry_after_s=1),
}
"""Looked up along the class's bases, so that a new kind of InvalidRequest is a 400 without a line here."""


class UpstreamError(Exception):
    """The inference server answered with an error, already in OpenAI's words."""

    def __init__(self, status: int, body: ErrorBody, *, retry_after_s: int | None = None) -> None:
        super().__init__(body.message)
        self.status = status
        self.body = body
        self.retry_after_s = retry_after_s


def rule_for(error: errors.SelftuneError) -> Rule:
    return next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)


def on_our_error(_request: Request[Any, Any, Any], error: errors.SelftuneError) -> Response[ErrorResponse]:
    rule = rule_for(error)
    if rule.status == 500:
        _log.error("request.failed", exc_info=error)
    headers = {"www-authenticate": "Bearer"} if rule.status == 401 else {}
    retry_after_s = rule.retry_after_s
    if isinstance(error, errors.RateLimited) and error.retry_after_s is not None:
        retry_after_s = math.ceil(error.retry_after_s)
    if rule.never_retry or (rule.status == 429 and retry_after_s is None):
        headers["x-should-retry"] = "false"
    return _envelope(rule.status, rule.type, error.message, error.code, error.param, retry_after_s, headers)


def on_upstream_error(_request: Request[Any, Any, Any], error: UpstreamError) -> Response[ErrorResponse]:
    body = error.body
    return _envelope(error.status, body.type, body.message, body.code, body.param, error.retry_after_s)


def on_http_exception(request: Request[Any, Any, Any], error: HTTPException) -> Response[ErrorResponse]:
    """Translate what Litestar itself refuses: unknown routes, wrong methods, bad query parameters, bad hosts."""
    place = f"{request.method} {request.scope['path'][:500]}"
    if isinstance(error, ValidationException):
        message, param = _describe_query(error)
        return _envelope(400, INVALID_REQUEST, message, "invalid_value", param)
    if isinstance(error, MethodNotAllowedException):
        message = f"Not allowed to {place}; look up which method this URL takes."
        return _envelope(405, INVALID_REQUEST, message, "method_not_allowed", headers=dict(error.headers or {}))
    if isinstance(error, NotFoundException):
        message = f"Unknown request URL: {place}. Please check the URL for typos."
        return _envelope(404, INVALID_REQUEST, message, "unknown_url")
    if error.status_code >= 500:
        return on_unexpected(request, error)
    return _envelope(error.status_code, INVALID_REQUEST, error.detail)


def on_unexpected(_request: Request[Any, Any, Any], error: Exception) -> Response[ErrorResponse]:
    """Answer 500 with nothing of the exception in it; the log has the rest."""
    if isinstance(error, ClientGone):
        _log.info("request.abandoned")
        return _envelope(499, INVALID_REQUEST, "The client closed the connection.")
    _log.error("request.failed", exc_info=error)
    return _envelope(500, SERVER_ERROR, "An internal error occurred; the server's log has it under this request's id.")


def _describe_query(error: ValidationException) -> tuple[str, str | None]:
    first = error.extra[0] if isinstance(error.extra, list) and error.extra else {}
    param = first.get("key")
    fault = str(first.get("message", error.detail))
    return (f"Invalid value for '{param}': {fault[:1].lower()}{fault[1:500]}." if param else fault), param


def _envelope(
    status: int,
    type: str,
    message: str,
    code: str | None = None,
    param: str | None = None,
    retry_after_s: int | None = None,
    headers: dict[str, str] | None = None,
) -> Response[ErrorResponse]:
    headers = dict(headers or {})
    if retry_after_s is not None:
        headers["retry-after"] = str(retry_after_s)
    body = ErrorResponse(error=ErrorBody(message=message, type=type, param=param, code=code))
    return Response(body, status_code=status, media_type="application/json", headers=headers)
