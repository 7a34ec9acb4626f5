"""From a model's name to an open answer of an inference server. Bytes go through untouched, both ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated
from urllib.parse import quote

import httpx2
import msgspec
import structlog
from msgspec import Meta

from services.api.aliases.traffic import Traffic
from services.api.gateway import routing
from services.api.gateway.model_names import Meaning, ModelNames
from services.api.gateway.outgoing import ANSWERED_BY, Asking, Endpoint
from services.api.gateway.rewriting import with_fields
from services.api.gateway.upstream_errors import shape
from shared.errors import InvalidRequest, NoReplica, NotFound, ReplicaLost
from shared.records import ReplicaRecord
from shared.store.presence import Presence

_log = structlog.get_logger()

_ATTEMPTS = 2
_PRIORITY_HEADER = "x-vllm-priority"
"""Wins over the body's `priority` in vLLM; smaller numbers are answered earlier."""
_PRODUCT = {"generate": "generate text", "embed": "make embeddings"}


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway reads of a request; the rest is between client and model."""

    model: str
    stream: bool | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    """Not OpenAI's. A client may ask to be answered later than others, not earlier."""


VIEW_DECODER = msgspec.json.Decoder(View)


class Gateway:
    """Sends requests to the replicas of a base model."""

    def __init__(self, names: ModelNames, presence: Presence, traffic: Traffic, *, internal_key: str) -> None:
        self._names = names
        self._traffic = traffic
        self._presence = presence
        self._http = httpx2.AsyncClient(
            headers={"authorization": f"Bearer {internal_key}", "user-agent": "selftune-gateway"},
            # No read timeout: a long answer from a busy CPU is not a failure, and a dead replica closes its sockets.
            timeout=httpx2.Timeout(None, connect=5.0, pool=30.0),
            limits=httpx2.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=2.0),
            trust_env=False,
        )

    async def open(
        self,
        endpoint: Endpoint,
        body: bytes,
        *,
        model: str,
        project: str,
        request_id: str,
        priority: int = 0,
        sticky: str = "",
    ) -> httpx2.Response:
        """Return a replica's successful answer, its body not read yet; the caller closes it.

        The body goes out as it is; only an alias is replaced by the model it stands for. Of the requests that wait for
        an engine those with the smallest `priority` come first; a negative one counts as 0. `sticky` stands for the
        user of a request that names none, where an alias has two models; without it each request is drawn anew. The
        answer's header ANSWERED_BY names the model.

        Raises NotFound for a model that the project does not see, InvalidRequest for one that cannot answer at this
        endpoint, NoReplica, and UpstreamError for the replica's own.
        """
        meaning = await self._names.look_up(model, project)
        asking = Asking(
            endpoint=endpoint,
            body=body,
            model=model,
            request_id=request_id,
            priority=max(priority, 0),
            sticky=sticky or request_id,
        )
        if meaning.alias is None:
            return await self._open_at(meaning, asking)
        return await self._traffic.open(meaning.alias, meaning, asking, self._open_at)

    async def _open_at(self, meaning: Meaning, asking: Asking) -> httpx2.Response:
        """Ask one model. Raises as open() does."""
        choices = await self._choices(asking.endpoint, asking.model, meaning)
        body = asking.body
        if meaning.target != asking.model:
            body = with_fields(body, model=meaning.target)
        # With one replica the second attempt goes there too: its first may have met a connection closed long ago.
        for replica in (choices * _ATTEMPTS)[:_ATTEMPTS]:
            try:
                response = await self._send(replica, asking.endpoint, body, asking.request_id, asking.priority)
            except httpx2.TransportError as error:
                _log.warning("gateway.unreachable", replica=replica.id, reason=type(error).__name__)
                continue
            response.headers[ANSWERED_BY] = quote(meaning.target, safe="/:@+=,~")
            return response if response.is_success else await _refuse(response)
        raise ReplicaLost(
            f"The model '{asking.model}' cannot answer at the moment: its inference server does not respond."
        )

    async def is_away(self, endpoint: Endpoint, *, model: str, project: str) -> bool:
        """Tell whether a request would meet no replica now; one that is refused for another reason would not."""
        try:
            await self._choices(endpoint, model, await self._names.look_up(model, project))
        except NoReplica:
            return True
        except (NotFound, InvalidRequest):
            return False
        return False

    async def close(self) -> None:
        await self._http.aclose()

    async def _choices(self, endpoint: Endpoint, model: str, meaning: Meaning) -> list[ReplicaRecord]:
        """Return who can answer for a model that was asked for as `model`, best first. Raises as open() does."""
        alive = await self._presence.replicas()
        found = routing.candidates(alive, base=meaning.base, model=meaning.target)
        return _able(found, endpoint, model)

    async def _send(
        self, replica: ReplicaRecord, endpoint: Endpoint, body: bytes, request_id: str, priority: int
    ) -> httpx2.Response:
        headers = {
            "content-type": "application/json",
            "accept-encoding": "identity",
            "x-request-id": request_id,
            _PRIORITY_HEADER: str(priority),
        }
        request = self._http.build_request("POST", replica.url.rstrip("/") + endpoint, content=body, headers=headers)
        return await self._http.send(request, stream=True)


def _able(replicas: Sequence[ReplicaRecord], endpoint: Endpoint, model: str) -> list[ReplicaRecord]:
    """Keep the replicas whose engine can do what the endpoint is for. Raises InvalidRequest when none can."""
    task = "embed" if endpoint == "/v1/embeddings" else "generate"
    able = [replica for replica in replicas if task in replica.tasks]
    if not able:
        raise InvalidRequest(
            f"The model '{model}' cannot {_PRODUCT[task]}, so it does not answer at {endpoint}.",
            code="unsupported_endpoint",
            param="model",
        )
    return able


async def _refuse(response: httpx2.Response) -> httpx2.Response:
    try:
        error = await shape(response)
    finally:
        await response.aclose()
    raise error
