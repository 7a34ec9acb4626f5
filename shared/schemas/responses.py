"""Small objects of the Responses API; responses themselves are kept as the inference server made them."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class TokenCount(Struct, frozen=True, kw_only=True):
    """Answer to POST /v1/responses/input_tokens."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


class InputTokens(Struct, frozen=True, kw_only=True):
    """What is read of the inference server's rendering of a request."""

    token_ids: list[int]
