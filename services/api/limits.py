"""Limits per minute: requests of every route, tokens of those that generate, of the key and of its project.

A refused request counts as a request. Every answer to a limited caller carries OpenAI's x-ratelimit-* headers, which
speak of the bucket, the key's or the project's, in which less is left.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec
from litestar.connection import ASGIConnection, Request

from services.api import metrics
from services.api.bodies import read_json
from shared import keys
from shared.errors import RateLimited
from shared.store.api_keys import Identity
from shared.store.limits import Bucket, LimitStore, Taking

Unit = Literal["requests", "tokens"]

_HEADERS = "limit_headers"
_CHARACTERS_PER_TOKEN = 4


class _Wanted(msgspec.Struct):
    """How much of an answer a body asks for, under the names that the generating endpoints have for it."""

    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    n: Any = None
    prompt: Any = None


_WANTED = msgspec.json.Decoder(_Wanted)


async def take_request(connection: ASGIConnection[Any, Any, Any, Any], limits: LimitStore, caller: Identity) -> None:
    """Count one request. Raises RateLimited. No round trip when neither key nor project has a limit."""
    await _take(connection, limits, caller, "requests", 1)


async def read_prompt(request: Request[Any, Any, Any], *, limit: int) -> bytes:
    """Return the body of a request that generates, as `read_json` does, and count its tokens. Raises RateLimited."""
    body = await read_json(request, limit=limit)
    await _take(request, request.app.state.services.stores.limits, request.auth, "tokens", estimated_tokens(body))
    return body


def estimated_tokens(body: bytes) -> int:
    """Estimate what a request may cost, as OpenAI documents it: a quarter of the body's characters, and the longest
    answer that it allows, times the number of answers and prompts. The body may be anything; it is judged later."""
    characters = len(body.decode("utf-8", "replace"))
    return math.ceil(characters / _CHARACTERS_PER_TOKEN) + _answer_tokens(body)


def _answer_tokens(body: bytes) -> int:
    try:
        wanted = _WANTED.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0
    longest = max(map(_count, (wanted.max_tokens, wanted.max_completion_tokens, wanted.max_output_tokens)))
    return longest * max(1, _count(wanted.n)) * _prompts(wanted.prompt)


def _prompts(prompt: Any) -> int:
    """Return how many prompts /v1/completions is given: a list holds texts, lists of tokens, or the tokens of one."""
    several = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
    return len(prompt) if several else 1


def _count(value: Any) -> int:
    return min(value, 2**31) if isinstance(value, int) and value > 0 else 0


def remaining_headers(state: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    """Return the headers that tell what is left, from a request's state."""
    found: dict[str, str] = state.get(_HEADERS, {})
    return [(name.encode(), value.encode()) for name, value in found.items()]


async def _take(
    connection: ASGIConnection[Any, Any, Any, Any], limits: LimitStore, caller: Identity, unit: Unit, cost: int
) -> None:
    buckets = _buckets(caller, unit)
    if not buckets:
        return
    taking = await limits.take(buckets, cost)
    level = taking.tightest
    connection.scope["state"].setdefault(_HEADERS, {}).update(
        {
            f"x-ratelimit-limit-{unit}": str(level.bucket.per_minute),
            f"x-ratelimit-remaining-{unit}": str(level.left),
            f"x-ratelimit-reset-{unit}": duration(level.full_in_ms),
        }
    )
    if not taking.taken:
        metrics.RATE_LIMITED.labels(unit).inc()
        raise _refusal(taking, unit, cost)


def _buckets(caller: Identity, unit: Unit) -> list[Bucket]:
    key_of = keys.request_bucket if unit == "requests" else keys.token_bucket
    owners = [("key", caller.key.id, caller.key.limits), ("project", caller.project.id, caller.project.limits)]
    return [
        Bucket(key=key_of(owner_id), owner=f"{kind} {owner_id}", per_minute=per_minute)
        for kind, owner_id, of_owner in owners
        if (per_minute := of_owner.requests_per_minute if unit == "requests" else of_owner.tokens_per_minute)
    ]


def _refusal(taking: Taking, unit: Unit, cost: int) -> RateLimited:
    smallest = min((level.bucket for level in taking.levels), key=lambda bucket: bucket.per_minute)
    if taking.retry_in_ms is None:
        return RateLimited(
            f"Request too large for {smallest.owner} on {unit} per minute: Limit {smallest.per_minute}, "
            f"Requested {cost}. Make the prompt shorter or lower max_tokens.",
        )
    level = taking.tightest
    return RateLimited(
        f"Rate limit reached for {level.bucket.owner} on {unit} per minute: Limit {level.bucket.per_minute}, "
        f"Used {level.bucket.per_minute - level.left}, Requested {cost}. "
        f"Please try again in {duration(taking.retry_in_ms)}.",
        retry_after_s=taking.retry_in_ms / 1000,
    )


def duration(ms: int) -> str:
    """Write a time as OpenAI's headers do, in Go's format: `120ms`, `8.64s`, `6m0s`, `1h0m0s`."""
    if ms < 1000:
        return f"{ms}ms"
    minutes, rest = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds
