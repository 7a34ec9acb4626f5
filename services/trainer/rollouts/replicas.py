"""One question to whichever inference server is least busy, and to another one where that cannot answer."""

from __future__ import annotations

from typing import Any

import httpx2
import msgspec
import structlog
from msgspec import Struct

from services.trainer.stores import Stores
from shared import ids, tracing
from shared.errors import NoReplica, SelftuneError
from shared.internal_headers import PROJECT_HEADER
from shared.loads import Loads
from shared.records import ReplicaRecord
from shared.replica_http import LATER, PRIORITY_HEADER, replica_client
from shared.routing import candidates

_ELSEWHERE = frozenset({422, 429})
"""Statuses, beside those from 500, that say more of the server than of the question: 422 where it cannot serve the
adapter, whose file may be damaged on its host alone."""
_PASSING = frozenset({429, 503})
"""Statuses that a server has for a while: too much to do, not ready yet."""
_MOST_TRIES = 3
_MESSAGE_CHARS = 500

log = structlog.get_logger()


class QuestionRefused(SelftuneError):
    """A server refuses the question, and so would others; the message is the server's."""


class AnswerUnusable(NoReplica):
    """What a server answers is of no use, and may be so however often it is asked; the message says what is wrong."""


class _Fault(Struct):
    message: Any = None


class _Refusal(Struct):
    error: _Fault


class Replicas:
    """Asks for one project, later than live requests. Close it at the end."""

    def __init__(self, stores: Stores, project: str) -> None:
        self._stores = stores
        self._project = project
        self._loads = Loads()
        self._http = replica_client(stores.internal_key(), user_agent="selftune-rollouts")

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, body: bytes, *, base: str, model: str, path: str = "/v1/chat/completions") -> bytes:
        """Return the body of a model's answer.

        Raises QuestionRefused, StoreUnavailable, or NoReplica when no server answers now: none is there, or those that
        are break down on it or have too much to do; AnswerUnusable when all that were asked break down and stay there.
        """
        alive = await self._stores.presence.replicas()
        able = [one for one in alive if "generate" in one.tasks]
        reason, is_passing = "", False
        for replica in candidates(able, self._loads, base=base, model=model)[:_MOST_TRIES]:
            self._loads.note(replica)
            try:
                response = await self._post(replica, path, body)
            except httpx2.TransportError as error:
                reason, is_passing = f"the inference server does not respond ({type(error).__name__})", True
            else:
                if response.status_code == 200:
                    return response.content
                reason = _reason(response)
                if response.status_code < 500 and response.status_code not in _ELSEWHERE:
                    raise QuestionRefused(reason)
                is_passing |= response.status_code in _PASSING
            log.warning("rollouts.tried_elsewhere", replica=replica.id, reason=reason)
        raise (NoReplica if is_passing else AnswerUnusable)(reason)

    async def _post(self, replica: ReplicaRecord, path: str, body: bytes) -> httpx2.Response:
        headers = {
            **tracing.headers(),
            "content-type": "application/json",
            "x-request-id": ids.new_request_id(),
            PRIORITY_HEADER: str(LATER),
            PROJECT_HEADER: self._project,
        }
        return await self._http.post(replica.url.rstrip("/") + path, content=body, headers=headers)


def _reason(response: httpx2.Response) -> str:
    try:
        message = msgspec.json.decode(response.content, type=_Refusal).error.message
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        message = None
    text = message if isinstance(message, str) and message else f"status {response.status_code}"
    return text[:_MESSAGE_CHARS]
