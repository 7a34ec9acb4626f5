"""Which requests of an alias its canary answers: a pure choice, the same for the same user."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from msgspec import Struct

from shared.schemas.aliases import Canary


class _User(Struct):
    """Where the endpoints have the end user's name, the first that is given counts."""

    safety_identifier: Any = None
    user: Any = None
    prompt_cache_key: Any = None
    metadata: Any = None


_decode = msgspec.json.Decoder(_User).decode


def user_of(body: bytes, otherwise: str) -> str:
    """Return whom a request is for: `safety_identifier`, `user`, `prompt_cache_key`, or Anthropic's `metadata.user_id`.

    `otherwise` stands for a request that names nobody. `body` must be an object, as one is from which a model was read.
    """
    named = _decode(body)
    anthropic = named.metadata.get("user_id") if isinstance(named.metadata, dict) else None
    given = (named.safety_identifier, named.user, named.prompt_cache_key, anthropic)
    return next((name for name in given if isinstance(name, str) and name), otherwise)


def place_of(uid: str, canary_model: str, user: str) -> float:
    """Return a user's place among all, from 0 up to 100: evenly spread, and another one for every alias and canary."""
    digest = hashlib.sha256(f"{uid}\0{canary_model}\0{user}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") * 100 / 2**64


def takes_canary(uid: str, canary: Canary, user: str) -> bool:
    """Tell whether the canary answers a user. Raising the percentage adds users and takes none away."""
    return place_of(uid, canary.model, user) < canary.percent
