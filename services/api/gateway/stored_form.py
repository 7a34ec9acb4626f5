"""A chat completion as it is stored: the answer, with what of the request it shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from services.api.gateway.mending import mended
from shared.rewriting import with_fields
from shared.store.completions import StoredCompletion


class _Named(Struct, frozen=True):
    id: str
    model: str


_decode_named = msgspec.json.Decoder(_Named).decode
_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def stored_form(
    completion: bytes, request: bytes, metadata: Mapping[str, str], *, project: str, request_id: str
) -> tuple[StoredCompletion, bytes]:
    """Return a completion as it is stored, and the request's messages as JSON.

    Raises msgspec.MsgspecError when the completion is none.
    """
    named = _decode_named(completion)
    repeated, messages = _repeated(request)
    stored = StoredCompletion(
        id=named.id,
        project=project,
        model=named.model,
        metadata=dict(metadata),
        body=with_fields(mended(completion), **repeated, request_id=request_id),
    )
    return stored, messages


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
