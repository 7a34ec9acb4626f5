"""Changing top-level fields of a JSON object and leaving every other value as the bytes it came in."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.encode


def with_fields(body: bytes, *, without: Collection[str] = (), **changes: Any) -> bytes:
    """Return a JSON object with fields set and others left out; values that are not named keep their bytes.

    `body` must be an object, as one is from which a model was read.
    """
    kept: dict[str, Any] = {name: value for name, value in _decode(body).items() if name not in without}
    return _encode(kept | changes)


def with_text(body: bytes, name: str, value: str) -> bytes:
    """Return a JSON object that has a member, with a text as its value, behind all others; nothing else changes.

    Of two members of that name readers take the last. `body` must be an object that is not empty.
    """
    return b"%b,%b:%b}" % (body.rstrip()[:-1], _encode(name), _encode(value))
