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
