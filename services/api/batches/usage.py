"""What an answer cost, whichever endpoint it comes from."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from shared.schemas.batches import BatchUsage, InputTokensDetails, OutputTokensDetails


class _Details(Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(Struct):
    """What the endpoints count, under the names that they have for it."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Answer(Struct):
    usage: _Usage | None = None


_decode = msgspec.json.Decoder(_Answer).decode


def usage_of(answer: bytes) -> BatchUsage:
    """Read the usage of a whole answer; zeros if it has none. Raises msgspec.MsgspecError when it is no JSON object."""
    counted = _decode(answer).usage or _Usage()
    given = counted.prompt_tokens_details or counted.input_tokens_details or _Details()
    made = counted.completion_tokens_details or counted.output_tokens_details or _Details()
    tokens_in = counted.prompt_tokens or counted.input_tokens or 0
    tokens_out = counted.completion_tokens or counted.output_tokens or 0
    return BatchUsage(
        input_tokens=tokens_in,
        input_tokens_details=InputTokensDetails(cached_tokens=given.cached_tokens or 0),
        output_tokens=tokens_out,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=made.reasoning_tokens or 0),
        total_tokens=counted.total_tokens or tokens_in + tokens_out,
    )
