"""From a model's name to an open answer of an inference server. Bytes go through untouched, both ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, TypeAlias

import httpx2
import msgspec
import structlog
from msgspec import Meta

from services.api.gateway import routing
from services.api.gateway.model_defaults import with_defaults
from services.api.gateway.model_names import Meaning, ModelNames
from services.api.gateway.rewriting import with_fields
from services.api.gateway.upstream_errors import shape
from shared.errors import InvalidRequest, NoReplica, NotFound, ReplicaLost
from shared.model_records import Access
from shared.records import ReplicaRecord
from shared.store.presence import Presence

_log = structlog.get_logger()

Endpoint = Literal[
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/responses/render", "/v1/embeddings",
    "/v1/messages", "/v1/messages/count_tokens",
]  # fmt: skip

_ATTEMPTS = 2
_PRIORITY_HEADER = "x-vllm-priority"
"""Wins over the body's `priority` in vLLM; smaller numbers are answered earlier."""
OnSent: TypeAlias = Callable[[bytes], None]
_PRODUCT = {"generate": "generate text", "embed": "make embeddings"}


class _TemplateValues(msgspec.Struct, frozen=True):
    chat_template: msgspec.Raw = msgspec.Raw(b"null")


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway reads of a request; the rest is between client and model."""

    model: str
    stream: bool | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    """Not OpenAI's. A client may ask to be answered later than others, not earlier."""
    chat_template: msgspec.Raw = msgspec.Raw(b"null")
    chat_template_kwargs: _TemplateValues | None = None

    def __post_init__(self) -> None:
        """Raises InvalidRequest for a template of the client's: the inference server would run it."""
        if bytes(self.chat_template) != b"null":
            raise _foreign_template("chat_template")
        if self.chat_template_kwargs is not None and bytes(self.chat_template_kwargs.chat_template) != b"null":
            raise _foreign_template("chat_template_kwargs.chat_template")


def _foreign_template(param: str) -> InvalidRequest:
    return InvalidRequest(
        f"Requests bring no chat template of their own; leave '{param}' out. The owner of a fine-tuned model may set "
        "one for it, at /v1/models/{model}/settings.",
        code="unsupported_parameter",
        param=param,
    )


VIEW_DECODER = msgspec.json.Decoder(View)


class Gateway:
    """Sends requests to the replicas of a base model."""

    def __init__(self, names: ModelNames, presence: Presence, *, internal_key: str) -> None:
        self._names = names
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
        access: Access,
        request_id: str,
        priority: int = 0,
        on_sent: OnSent | None = None,
    ) -> httpx2.Response:
        """Return a replica's successful answer, its body not read yet; the caller closes it.

        The body goes out as it is; only an alias is replaced by the model it stands for, and what the model's owner has
        set stands in for what the client leaves out. `on_sent` is told the body as it goes out. Of the requests that
        wait for an engine those with the smallest `priority` come first; a negative one counts as 0.

        Raises NotFound for a model that the key does not see, InvalidRequest for one that cannot answer at this
        endpoint, NoReplica, and UpstreamError for the replica's own.
        """
        meaning, choices = await self._choices(endpoint, model, access)
        if meaning.target != model:
            body = with_fields(body, model=meaning.target)
        if meaning.settings is not None:
            body = with_defaults(endpoint, body, meaning.settings)
        if on_sent is not None:
            on_sent(body)
        # With one replica the second attempt goes there too: its first may have met a connection closed long ago.
        for replica in (choices * _ATTEMPTS)[:_ATTEMPTS]:
            try:
                response = await self._send(replica, endpoint, body, request_id, max(priority, 0))
            except httpx2.TransportError as error:
                _log.warning("gateway.unreachable", replica=replica.id, reason=type(error).__name__)
                continue
            return response if response.is_success else await _refuse(response)
        raise ReplicaLost(f"The model '{model}' cannot answer at the moment: its inference server does not respond.")

    async def is_away(self, endpoint: Endpoint, *, model: str, access: Access) -> bool:
        """Tell whether a request would meet no replica now; one that is refused for another reason would not."""
        try:
            await self._choices(endpoint, model, access)
        except NoReplica:
            return True
        except (NotFound, InvalidRequest):
            return False
        return False

    async def close(self) -> None:
        await self._http.aclose()

    async def _choices(self, endpoint: Endpoint, model: str, access: Access) -> tuple[Meaning, list[ReplicaRecord]]:
        """Return what a name stands for, and who can answer, best first. Raises as open() does."""
        meaning = await self._names.look_up(model, access)
        alive = await self._presence.replicas()
        found = routing.candidates(alive, base=meaning.base, model=meaning.target)
        return meaning, _able(found, endpoint, model)

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
