"""Having a model answer one request of a client, for as long as the client is there."""

from __future__ import annotations

from typing import Any

import httpx2
from litestar import Request

from services.api.access import request_id_of
from services.api.gateway.forwarding import Endpoint, Gateway, OnSent, View
from services.api.gateway.relay import read_unless_stream, unless_gone
from shared.store.api_keys import Identity


async def ask(
    request: Request[Any, Identity, Any],
    gateway: Gateway,
    endpoint: Endpoint,
    body: bytes,
    view: View,
    on_sent: OnSent | None = None,
) -> httpx2.Response | bytes:
    """Return the answer to `body`: still open if it is a stream, else whole.

    Raises ClientGone, and what Gateway.open does.
    """
    opening = gateway.open(
        endpoint,
        body,
        model=view.model,
        access=request.auth.key.access,
        request_id=request_id_of(request.scope),
        priority=view.priority or 0,
        on_sent=on_sent,
    )
    return await unless_gone(read_unless_stream(opening), request.receive)
