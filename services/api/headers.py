"""Headers that tell browsers what an answer may be used for, and which pages of other sites may ask (CORS)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from litestar.config.cors import CORSConfig

Headers = list[tuple[bytes, bytes]]

API_HEADERS: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    (b"cache-control", b"no-store"),
]
"""On every answer; one that has a header of the name itself keeps its own."""

_SHOWN = [
    *("x-request-id", "openai-processing-ms", "openai-version", "retry-after", "x-should-retry", "x-selftune-model"),
    *(f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")),
]
"""What a page of another site may read beside the body."""


def with_defaults(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Add the headers above to an answer's own."""
    own = [(name.lower(), value) for name, value in headers]
    names = {name for name, _ in own}
    return [*own, *((name, value) for name, value in API_HEADERS if name not in names)]


def cors(origins: Sequence[str]) -> CORSConfig | None:
    """Let pages of these origins ask; None for none. Keys travel in a header, never in cookies: no credentials."""
    if not origins:
        return None
    return CORSConfig(
        allow_origins=list(origins), allow_methods=["GET", "POST", "DELETE"], expose_headers=_SHOWN, max_age=600
    )
