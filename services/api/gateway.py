"""From a model's name to an open answer of an inference server. Bytes go through untouched, both ways."""

from __future__ import annotations

from typing import Literal

import httpx2
import msgspec
import structlog

from services.api import routing
from services.api.upstream_errors import shape
from shared.errors import NoReplica
from shared.records import ReplicaRecord
from shared.store.presence import Presence
from shared.store.registry import Registry, unknown_model

_log = structlog.get_logger()

Endpoint = Literal["/v1/chat/completions", "/v1/completions"]

_ATTEMPTS = 2


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway reads of a request; the rest is between client and model."""

    model: str
    stream: bool | None = None


VIEW_DECODER = msgspec.json.Decoder(View)


class Gateway:
    """Sends requests to the replicas of a base model."""

    def __init__(self, registry: Registry, presence: Presence, *, internal_key: str) -> None:
        self._registry = registry
        self._presence = presence
        self._http = httpx2.AsyncClient(
            headers={"authorization": f"Bearer {internal_key}", "user-agent": "selftune-gateway"},
            # No read timeout: a long answer from a busy CPU is not a failure, and a dead replica closes its sockets.
            timeout=httpx2.Timeout(None, connect=5.0, pool=30.0),
            limits=httpx2.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=2.0),
            trust_env=False,
        )

    async def open(
        self, endpoint: Endpoint, body: bytes, *, model: str, project: str, request_id: str
    ) -> httpx2.Response:
        """Return a replica's successful answer, its body not read yet; the caller closes it.

        Raises NotFound for a model that the project does not see, NoReplica, and UpstreamError for the replica's own.
        """
        base = await self._base_of(model, project)
        choices = routing.candidates(await self._presence.replicas(), base=base, model=model)
        # With one replica the second attempt goes there too: its first may have met a connection closed long ago.
        for replica in (choices * _ATTEMPTS)[:_ATTEMPTS]:
            try:
                response = await self._send(replica, endpoint, body, request_id)
            except httpx2.TransportError as error:
                _log.warning("gateway.unreachable", replica=replica.id, reason=type(error).__name__)
                continue
            return response if response.is_success else await _refuse(response)
        raise NoReplica(f"The model '{model}' cannot answer at the moment: its inference server does not respond.")

    async def close(self) -> None:
        await self._http.aclose()

    async def _base_of(self, model: str, project: str) -> str:
        if await self._registry.base(model) is not None:
            return model
        adapter = await self._registry.usable(model, project)
        if adapter is None:
            raise unknown_model(model)
        return adapter.base

    async def _send(self, replica: ReplicaRecord, endpoint: Endpoint, body: bytes, request_id: str) -> httpx2.Response:
        headers = {"content-type": "application/json", "accept-encoding": "identity", "x-request-id": request_id}
        request = self._http.build_request("POST", replica.url.rstrip("/") + endpoint, content=body, headers=headers)
        return await self._http.send(request, stream=True)


async def _refuse(response: httpx2.Response) -> httpx2.Response:
    try:
        error = await shape(response)
    finally:
        await response.aclose()
    raise error
