"""POST /v1/responses over an inference server that keeps nothing: the conversation so far is put in front of the
request, and the response is kept here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
import structlog
from msgspec import Raw, Struct

from services.api.gateway.forwarding import View
from services.api.gateway.response_items import Item, conversation, input_items
from services.api.gateway.response_mending import mended_response
from services.api.gateway.sse_pieces import EventSplitter, data_of
from shared import ids
from shared.errors import InvalidRequest
from shared.rewriting import with_fields
from shared.schemas.jobs import Metadata
from shared.store.responses import ResponseStore, StoredResponse

_log = structlog.get_logger()

_OURS = frozenset({"store", "previous_response_id", "background", "conversation", "prompt"})
"""Fields that the inference server does not get."""
_LAST_EVENTS = frozenset({"response.completed", "response.incomplete", "response.failed"})
_HAS_RESPONSE = re.compile(rb'"response":\s*\{')
"""Spares decoding most events; inside a text the quotes would be escaped."""


class _Tool(Struct):
    type: str


class ResponseView(View, frozen=True, kw_only=True):
    """What the gateway reads of a request."""

    input: Raw
    store: bool | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    conversation: Raw = Raw(b"null")
    prompt: Raw = Raw(b"null")
    metadata: Metadata | None = None
    tools: list[_Tool] | None = None

    def check(self) -> None:
        """Raises InvalidRequest for what this server does not have."""
        if self.background:
            raise _unsupported("background", "Background responses are not offered; leave 'background' out.")
        if bytes(self.conversation) != b"null":
            raise _unsupported("conversation", "Conversations are not offered; go on with 'previous_response_id'.")
        if bytes(self.prompt) != b"null":
            raise _unsupported("prompt", "Prompt templates are not offered; write the prompt into 'input'.")
        for place, tool in enumerate(self.tools or []):
            if tool.type != "function":
                message = f"Tools of type '{tool.type}' are not offered by this server; use 'function'."
                raise _unsupported(f"tools[{place}].type", message)


def _unsupported(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, code="unsupported_parameter", param=param)


class _Event(Struct):
    type: str = ""


_decode_type = msgspec.json.Decoder(_Event).decode
_decode_raw = msgspec.json.Decoder(dict[str, Raw]).decode


class Turn:
    """One request to the Responses API and its response."""

    def __init__(self, store: ResponseStore, request: bytes, view: ResponseView, *, project: str) -> None:
        view.check()
        self._store = store
        self._request = request
        self._view = view
        self._project = project
        self._items = input_items(view.input)
        self._events = EventSplitter()
        self.id = ids.new_response_id()

    @property
    def kept(self) -> bool:
        return self._view.store is not False

    async def check_room(self) -> None:
        """Raises RateLimited when the response is to be kept, and its project's storage has no room for it."""
        if self.kept:
            await self._store.check_room(self._project, len(self._request))

    async def upstream_body(self, without: Collection[str] = ()) -> bytes:
        """Form what the inference server gets: the whole conversation, under an id of ours, less some fields.

        Raises InvalidRequest when the conversation is not there any more.
        """
        changes: dict[str, Any] = {"request_id": self.id}
        if self._view.previous_response_id is not None:
            past = await self._store.chain(self._view.previous_response_id, project=self._project)
            changes["input"] = [*conversation([(turn.items, turn.body) for turn in past]), *_as_sent(self._view.input)]
        nulls = {name for name, value in _decode_raw(self._request).items() if bytes(value) == b"null"}
        return with_fields(self._request, without={*_OURS, *nulls, *without}, **changes)

    def mended(self, response: bytes) -> bytes:
        return mended_response(response, previous=self._view.previous_response_id, store=self.kept)

    async def feed(self, piece: bytes) -> bytes:
        """Return the events that are whole by now, those with a response object mended; the last one is kept first."""
        return b"".join([await self._passed(event) for event in self._events.feed(piece)])

    async def _passed(self, event: bytes) -> bytes:
        data = data_of(event)
        if data is None or not _HAS_RESPONSE.search(data):
            return event
        try:
            fields = _decode_raw(data)
            kind, response = _decode_type(data).type, self.mended(bytes(fields["response"]))
        except (msgspec.MsgspecError, KeyError) as error:  # the client gets it as it is
            _log.warning("gateway.odd_event", reason=str(error))
            return event
        if self.kept and kind in _LAST_EVENTS:
            await self.keep(response)
        return event.replace(data, msgspec.json.encode(fields | {"response": Raw(response)}))

    async def keep(self, response: bytes) -> None:
        """Store the mended response. Raises StoreUnavailable."""
        await self._store.keep(
            StoredResponse(
                id=self.id,
                project=self._project,
                previous=self._view.previous_response_id or "",
                body=response,
                items=msgspec.json.encode(self._items),
            )
        )


def _as_sent(given: Raw) -> Sequence[Raw | Item]:
    """Return the items of `input` as the client wrote them."""
    if bytes(given).lstrip()[:1] == b'"':
        return [{"role": "user", "content": given}]
    return msgspec.json.decode(given, type=list[Raw])
