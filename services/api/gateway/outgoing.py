"""A request on its way to a model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias

import httpx2
from msgspec import Struct

from services.api.gateway.model_names import Meaning

Endpoint = Literal[
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/responses/render", "/v1/embeddings",
    "/v1/messages", "/v1/messages/count_tokens",
]  # fmt: skip

ANSWERED_BY = "x-selftune-model"
"""Header of every generated answer: the model that gave it."""

OnSent: TypeAlias = Callable[[bytes], None]


class Asking(Struct, frozen=True, kw_only=True):
    """What is asked of whichever model answers."""

    endpoint: Endpoint
    body: bytes
    model: str
    """The name in the body, which may be an alias."""
    request_id: str
    priority: int
    """Of the requests that wait for an engine those with the smallest come first; at least 0."""
    sticky: str
    """Stands for the user of a request that names none: whoever has the same gets the same model of an alias."""
    salt: str = ""
    """Keeps the cached beginnings of prompts apart from those of requests with another; empty shares them with all."""
    on_sent: OnSent | None = None
    """Is told the body as it goes out, without the salt."""
    project: str = ""
    """Whose request it is, for metrics."""
    at_leisure: bool = False
    """Ask only a server that has the model in memory and room to spare; it is NoReplica where there is none."""


Opener: TypeAlias = Callable[[Meaning, Asking], Awaitable[httpx2.Response]]
"""Sends a request to a model, and returns the open answer. Raises as Gateway.open does."""
