"""OpenAI's error envelope."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class ErrorBody(Struct, frozen=True, kw_only=True):
    """What went wrong, for a person (`message`) and for a program (`type`, `code`, `param`)."""

    message: Annotated[str, Meta(description="One sentence that says what was wrong and what would be right.")]
    type: Annotated[str, Meta(description="Class of the error, such as invalid_request_error.")]
    param: Annotated[str | None, Meta(description="The field of the request that is to blame.")] = None
    code: Annotated[str | None, Meta(description="Stable name of the error.")] = None


class ErrorResponse(Struct, frozen=True, kw_only=True):
    """Body of every response that is not a success."""

    error: ErrorBody
