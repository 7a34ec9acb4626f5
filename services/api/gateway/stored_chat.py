"""Keeping chat completions that were asked for with `store: true`, and showing them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import structlog
from msgspec import Meta, Struct

from services.api.gateway.chat_pieces import ChatPieces
from services.api.gateway.forwarding import View
from services.api.gateway.mending import mended
from services.api.gateway.sse_pieces import EventSplitter, data_of
from shared.rewriting import with_fields
from shared.schemas.jobs import Metadata
from shared.store.completions import CompletionStore, StoredCompletion

_log = structlog.get_logger()

_DONE = b"[DONE]"


class ChatView(View, frozen=True, kw_only=True):
    """What the gateway reads of a chat request."""

    store: bool | None = None
    metadata: Metadata | None = None


class UpdateCompletion(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/chat/completions/{completion_id}: metadata are all that can change."""

    metadata: Annotated[Metadata | None, Meta(description="Replaces what was there; null removes it all.")]


class _Named(Struct, frozen=True):
    id: str
    model: str


_decode_named = msgspec.json.Decoder(_Named).decode
_decode_items = msgspec.json.Decoder(list[dict[str, Any]]).decode
_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.encode


class StoredChat:
    """Keeps one request's completion before the client has the end of it."""

    def __init__(
        self, store: CompletionStore, request: bytes, view: ChatView, *, project: str, request_id: str
    ) -> None:
        self._store = store
        self._request = request
        self._metadata = view.metadata or {}
        self._project = project
        self._request_id = request_id
        self._events = EventSplitter()
        self._pieces = ChatPieces()

    def asked(self, request: bytes) -> None:
        """Take note of the request as the model gets it, with what its owner has set for it."""
        self._request = request

    async def feed(self, piece: bytes) -> bytes:
        """Gather a stream's chunks; keep the completion when its end is about to go out. The bytes stay as they are."""
        for event in self._events.feed(piece):
            data = data_of(event)
            if data == _DONE and self._pieces.complete:
                await self.keep(self._pieces.completion())
            elif data is not None and data != _DONE:
                self._add(data)
        return piece

    def _add(self, data: bytes) -> None:
        try:
            self._pieces.add(data)
        except msgspec.MsgspecError as error:  # the client gets it all the same
            _log.warning("gateway.odd_chunk", reason=str(error))

    async def keep(self, completion: bytes) -> None:
        """Store a completion. Raises StoreUnavailable."""
        named = _decode_named(completion)
        repeated, messages = _repeated(self._request)
        await self._store.keep(
            StoredCompletion(
                id=named.id,
                project=self._project,
                model=named.model,
                metadata=self._metadata,
                body=with_fields(mended(completion), **repeated, request_id=self._request_id),
            ),
            messages=messages,
        )


def _repeated(request: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the fields of a request that its stored completion shows, and the request's messages as JSON.

    The inference server has accepted the request, so it has messages; numbers that it reads in another way than JSON
    says (a text "0.5", say) are shown as they were sent.
    """
    fields = _decode_raw(request)
    null = msgspec.Raw(b"null")
    shown: dict[str, Any] = {
        name: fields.get(name, null) for name in ("tools", "tool_choice", "response_format", "seed")
    }
    shown |= {name: _or_default(fields.get(name), default) for name, default in _DEFAULTS.items()}
    return shown | {"input_user": fields.get("user", null)}, bytes(fields["messages"])


_DEFAULTS = {
    "temperature": b"1.0",
    "top_p": b"1.0",
    "presence_penalty": b"0.0",
    "frequency_penalty": b"0.0",
}


def _or_default(given: msgspec.Raw | None, default: bytes) -> msgspec.Raw:
    return msgspec.Raw(default) if given is None or bytes(given) == b"null" else given


def public(completion: StoredCompletion) -> msgspec.Raw:
    """Form the completion as a client sees it."""
    return msgspec.Raw(with_fields(completion.body, metadata=completion.metadata))


def message_items(completion_id: str, messages: bytes) -> Sequence[dict[str, Any]]:
    """Form the items of a completion's messages: the message with an id, its text, and its parts if it had any."""
    return [_item(f"{completion_id}-{place}", message) for place, message in enumerate(_decode_items(messages))]


def _item(item_id: str, message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    parts = list(map(_part, content)) if isinstance(content, list) else None
    text = content if parts is None else "".join(part.get("text", "") for part in parts)
    return {"refusal": None, **message, "id": item_id, "content": text, "content_parts": parts}


def _part(part: Any) -> dict[str, Any]:
    """Form a content part as the document has it: the inference server takes plain texts, too, and null for a text."""
    if not isinstance(part, dict):
        return {"type": "text", "text": str(part)}
    return part | {"text": part["text"] or ""} if "text" in part else part
