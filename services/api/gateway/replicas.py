"""The inference servers behind the gateway: who is asked, and who is asked instead when that one cannot answer.

A request may begin again elsewhere until the first byte of its answer is here, or the whole answer where it is no
stream; whatever was made of it is lost with the server that made it, and the client has seen nothing of it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence

import httpx2
import structlog

from services.api import metrics
from services.api.errors import UpstreamError
from services.api.gateway.model_names import Meaning
from services.api.gateway.outgoing import Asking, Endpoint
from services.api.gateway.relay import is_stream
from services.api.gateway.upstream_errors import may_go_well_elsewhere, shape
from shared import routing
from shared.errors import InvalidRequest, ReplicaLost, Unavailable
from shared.internal_headers import PROJECT_HEADER
from shared.loads import Loads
from shared.records import AdapterRecord, ReplicaRecord
from shared.replica_http import PRIORITY_HEADER, replica_client
from shared.store.presence import Presence

_log = structlog.get_logger()

_ATTEMPTS = 3
_PRODUCT = {"generate": "generate text", "embed": "make embeddings"}


class Replicas:
    """Sends requests to the replicas that are alive."""

    def __init__(self, presence: Presence, *, internal_key: str) -> None:
        self._presence = presence
        self._loads = Loads()
        self._http = replica_client(internal_key, user_agent="selftune-gateway")

    async def able(
        self, meaning: Meaning, endpoint: Endpoint, *, asked_for: str, at_leisure: bool = False
    ) -> list[ReplicaRecord]:
        """Return who can answer for a model that was asked for as `asked_for`, best first.

        With `at_leisure` only those that have the model in memory and much room. Raises NoReplica when none is there,
        InvalidRequest when none can do what the endpoint is for.
        """
        if isinstance(meaning.model, AdapterRecord) and meaning.model.kind == "reward":
            raise InvalidRequest(
                f"The model '{asked_for}' is a reward model: it scores answers and writes none.",
                code="unsupported_endpoint",
                param="model",
            )
        alive = await self._presence.replicas()
        found = routing.candidates(alive, self._loads, base=meaning.base, model=meaning.target)
        if at_leisure:
            found = routing.at_leisure(found, self._loads, base=meaning.base, model=meaning.target)
        task = "embed" if endpoint == "/v1/embeddings" else "generate"
        able = [replica for replica in found if task in replica.tasks]
        if not able:
            raise InvalidRequest(
                f"The model '{asked_for}' cannot {_PRODUCT[task]}, so it does not answer at {endpoint}.",
                code="unsupported_endpoint",
                param="model",
            )
        return able

    async def send(
        self, choices: Sequence[ReplicaRecord], body: bytes, asking: Asking, headers: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        """Return the first answer that has begun, see `_begun`; the caller closes it. `headers` are sent, too.

        Raises ReplicaLost when no server responds, UpstreamError for what the last one says, and Unavailable when the
        gateway itself has no connection left.
        """
        for replica, is_last in _attempts(choices):
            try:
                response = await self._ask(replica, body, asking, headers or {})
                if response.is_success:
                    return await _begun(response, is_last=is_last)
            except httpx2.PoolTimeout as error:
                raise Unavailable("The server has too many requests under way; please try again.") from error
            except httpx2.TransportError as error:
                _log.warning("gateway.unreachable", replica=replica.id, reason=type(error).__name__)
                metrics.UPSTREAM_ERRORS.labels("unreachable").inc()
                if not is_last:
                    metrics.GATEWAY_RETRIES.labels("unreachable").inc()
                continue
            refusal = await _refusal(response)
            if response.status_code >= 500:
                metrics.UPSTREAM_ERRORS.labels("status").inc()
            if is_last or not may_go_well_elsewhere(response.status_code, refusal):
                raise refusal
            _log.warning("gateway.tried_elsewhere", replica=replica.id, status=response.status_code)
            metrics.GATEWAY_RETRIES.labels("refused").inc()
        raise ReplicaLost(
            f"The model '{asking.model}' cannot answer at the moment: its inference server does not respond."
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def _ask(
        self, replica: ReplicaRecord, body: bytes, asking: Asking, more: Mapping[str, str]
    ) -> httpx2.Response:
        headers = {
            **more,
            "content-type": "application/json",
            "accept-encoding": "identity",
            "x-request-id": asking.request_id,
            PRIORITY_HEADER: str(asking.priority),
            PROJECT_HEADER: asking.project,
        }
        url = replica.url.rstrip("/") + asking.endpoint
        self._loads.note(replica)
        return await self._http.send(self._http.build_request("POST", url, content=body, headers=headers), stream=True)


def _attempts(choices: Sequence[ReplicaRecord]) -> Iterator[tuple[ReplicaRecord, bool]]:
    """Give each server to try, and whether no other one follows.

    A single one is tried twice: the first attempt may have met a connection closed long ago.
    """
    if len(choices) == 1:
        yield choices[0], True
        yield choices[0], True
        return
    tried = choices[:_ATTEMPTS]
    yield from ((replica, replica is tried[-1]) for replica in tried)


async def _begun(response: httpx2.Response, *, is_last: bool) -> httpx2.Response:
    """Wait for what can still be asked for elsewhere. Raises TransportError.

    That is the first piece of a stream, whose head comes before anything is made, and another answer as a whole, while
    there is another server; the last one's is the caller's to read.
    """
    if not is_stream(response):
        if not is_last:
            await _read(response)
        return response
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    pieces = aiter(response.stream)
    try:
        first = await anext(pieces, b"")
    except BaseException:
        await response.aclose()
        raise
    response.stream = _Begun(first, pieces, response.stream)
    return response


async def _read(response: httpx2.Response) -> None:
    try:
        await response.aread()
    except BaseException:
        await response.aclose()
        raise


class _Begun(httpx2.AsyncByteStream):
    """A stream of which one piece was read."""

    def __init__(self, first: bytes, rest: AsyncIterator[bytes], stream: httpx2.AsyncByteStream) -> None:
        self._first = first
        self._rest = rest
        self._stream = stream
        self._is_read = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._is_read = True
        try:
            yield self._first
            async for piece in self._rest:
                yield piece
        finally:
            await self._close_rest()

    async def aclose(self) -> None:
        if not self._is_read:
            await self._close_rest()
        await self._stream.aclose()

    async def _close_rest(self) -> None:
        if isinstance(self._rest, AsyncGenerator):
            await self._rest.aclose()


async def _refusal(response: httpx2.Response) -> UpstreamError:
    try:
        return await shape(response)
    finally:
        await response.aclose()
