"""One request of a batch: asked as the live endpoint asks, later than live requests, and again when that can help."""

from __future__ import annotations

import asyncio
import math
import random
import time

import msgspec
import structlog
from msgspec import Raw

from services.api.batches.input_file import Request
from services.api.batches.results import Result
from services.api.batches.slots import Slots
from services.api.batches.usage import usage_of
from services.api.bodies import decode
from services.api.errors import SERVER_ERROR, UpstreamError, rule_for
from services.api.gateway.forwarding import VIEW_DECODER, Gateway, View
from services.api.gateway.mending import mended
from services.api.gateway.outgoing import OnSent
from services.api.gateway.relay import read_whole
from services.api.gateway.responses import ResponseView, Turn
from services.api.gateway.stored_chat import ChatView, StoredChat
from services.api.gateway.upstream_errors import unreadable
from shared import ids
from shared.errors import InvalidRequest, NoReplica, ReplicaLost, SelftuneError
from shared.model_records import Access
from shared.replica_http import LATER
from shared.schemas.batches import BatchEndpoint, BatchUsage
from shared.schemas.errors import ErrorBody, ErrorResponse
from shared.store.completions import CompletionStore
from shared.store.responses import ResponseStore

_log = structlog.get_logger()

_AGAIN = frozenset({429, 502, 503})
_MAX_LOSSES = 8
"""So often may the server break down on a request, before the request is taken for the reason."""
_COMING_BACK_S = 900.0
"""How long a server that broke down on a request is waited for: longer than an engine takes to start."""
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 60.0

_CHAT = msgspec.json.Decoder(ChatView)
_RESPONSE = msgspec.json.Decoder(ResponseView)


class Answering:
    """Asks the models. `slots` bounds how many requests are under way."""

    def __init__(
        self,
        gateway: Gateway,
        completions: CompletionStore,
        responses: ResponseStore,
        slots: Slots,
    ) -> None:
        self._gateway = gateway
        self._completions = completions
        self._responses = responses
        self._slots = slots

    async def result(self, number: int, request: Request, endpoint: BatchEndpoint, *, access: Access) -> Result:
        """Return the answer, or the refusal when asking again does not help. Raises as answer() does."""
        request_id = ids.new_request_id()
        status, body = await self.answer(endpoint, bytes(request.body), access=access, request_id=request_id)
        return _result(number, request.custom_id, request_id, status, body)

    async def answer(
        self, endpoint: BatchEndpoint, body: bytes, *, access: Access, request_id: str
    ) -> tuple[int, bytes]:
        """Return status and body of the answer, or of the refusal when asking again does not help.

        As long as the servers of the model are too busy, this goes on asking. Raises NoReplica when there is none; but
        where one broke down on the request it is given time to come back, so that the losses are counted.
        """
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            return await self._answer(endpoint, body, access, request_id)

    async def _answer(self, endpoint: BatchEndpoint, body: bytes, access: Access, request_id: str) -> tuple[int, bytes]:
        tries, losses, lost_at = 0, 0, -math.inf
        while True:
            try:
                async with self._slots.of(access.project):
                    return 200, await self._ask(endpoint, body, access, request_id)
            except (SelftuneError, UpstreamError) as error:
                status, refusal = _shown(error)
                tries += 1
                if isinstance(error, ReplicaLost) or status == 502:
                    losses, lost_at = losses + 1, time.monotonic()
                elif isinstance(error, NoReplica) and time.monotonic() - lost_at >= _COMING_BACK_S:
                    raise
                if status not in _AGAIN or losses >= _MAX_LOSSES:
                    return status, msgspec.json.encode(ErrorResponse(error=refusal))
                _log.info("batch.request_again", request_id=request_id, status=status, tries=tries)
            except Exception as error:  # noqa: BLE001 - fails this request, not the thousands beside it
                _log.error("batch.request_failed", request_id=request_id, exc_info=error)
                return 500, _BROKEN
            await asyncio.sleep(_wait_s(tries))

    async def is_away(self, endpoint: BatchEndpoint, model: str, access: Access) -> bool:
        """Tell whether no server is there for the model."""
        return await self._gateway.is_away(endpoint, model=model, access=access)

    async def _ask(self, endpoint: BatchEndpoint, body: bytes, access: Access, request_id: str) -> bytes:
        """Return the whole answer as the live endpoint gives it, on one line. Raises what that raises."""
        if endpoint == "/v1/responses":
            return await self._respond(body, access, request_id)
        view: View = decode(body, _CHAT) if endpoint == "/v1/chat/completions" else decode(body, VIEW_DECODER)
        if not (isinstance(view, ChatView) and view.store):
            return mended(await self._fetch(endpoint, body, view, access, request_id))
        stored = StoredChat(self._completions, body, view, project=access.project, request_id=request_id)
        answer = await self._fetch(endpoint, body, view, access, request_id, on_sent=stored.asked)
        await stored.keep(answer)
        return mended(answer)

    async def _respond(self, body: bytes, access: Access, request_id: str) -> bytes:
        view = decode(body, _RESPONSE)
        turn = Turn(self._responses, body, view, project=access.project)
        response = turn.mended(await self._fetch("/v1/responses", await turn.upstream_body(), view, access, request_id))
        if turn.kept:
            await turn.keep(response)
        return response

    async def _fetch(
        self,
        endpoint: BatchEndpoint,
        body: bytes,
        view: View,
        access: Access,
        request_id: str,
        on_sent: OnSent | None = None,
    ) -> bytes:
        if view.stream:
            raise InvalidRequest(
                "Requests of a batch cannot be streamed; leave 'stream' out.",
                code="unsupported_parameter",
                param="stream",
            )
        upstream = await self._gateway.open(
            endpoint,
            body,
            model=view.model,
            access=access,
            request_id=request_id,
            priority=max(view.priority or 0, LATER),
            on_sent=on_sent,
        )
        return _one_line(await read_whole(upstream))


def _one_line(answer: bytes) -> bytes:
    """Raises UpstreamError when it is no answer that could be counted."""
    try:
        usage_of(answer)
        return msgspec.json.format(answer, indent=-1) if b"\n" in answer else answer
    except msgspec.MsgspecError as error:
        raise unreadable() from error


_BROKEN = msgspec.json.encode(
    ErrorResponse(error=ErrorBody(message="An internal error occurred; the server's log has it.", type=SERVER_ERROR))
)


def _shown(error: SelftuneError | UpstreamError) -> tuple[int, ErrorBody]:
    """Return status and body as the live endpoint answers them."""
    if isinstance(error, UpstreamError):
        return error.status, error.body
    rule = rule_for(error)
    return rule.status, ErrorBody(message=error.message, type=rule.type, param=error.param, code=error.code)


def _wait_s(tries: int) -> float:
    return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(tries - 1, 10)) * random.uniform(0.75, 1.0)


def _result(number: int, custom_id: str, request_id: str, status: int, body: bytes) -> Result:
    line = {
        "id": ids.new_batch_request_id(),
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": request_id, "body": Raw(body)},
        "error": None,
    }
    failed = status != 200
    usage = BatchUsage() if failed else usage_of(body)
    return Result(number=number, failed=failed, usage=usage, line=Raw(msgspec.json.encode(line)))
