"""What a fine-tuned model's owner has set for it, put into requests where the client left it open.

Null counts as left open, as it does with OpenAI. Every value that the client sent keeps its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from shared.model_records import ModelSettingsRecord
from shared.rewriting import with_fields

_SYSTEM_ROLES = frozenset({"system", "developer"})


class _Form(Struct, frozen=True, kw_only=True):
    """How an endpoint's requests say what a model may have settings for. What is empty they do not say."""

    sampling: Mapping[str, str]
    """Our names → its names."""
    longest: Sequence[str] = ()
    """Its names for the longest answer; where the client gives none of them, the first is set."""
    conversation: str = ""
    system: str = ""
    """Where a system prompt goes that is no message of the conversation."""
    template: str = ""
    """Where vLLM takes a chat template: a field, or one inside of it."""


_TEMPLATE = "chat_template"
_TEMPLATE_INSIDE = "chat_template_kwargs"
_SAMPLING = {name: name for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "stop")}
_CHAT = _Form(
    sampling=_SAMPLING,
    longest=("max_completion_tokens", "max_tokens"),
    conversation="messages",
    template=_TEMPLATE,
)
_RESPONSE = _Form(
    sampling=_SAMPLING,
    longest=("max_output_tokens",),
    conversation="input",
    system="instructions",
    template=_TEMPLATE_INSIDE,
)
_COUNT = _Form(sampling={}, conversation="messages", system="system", template=_TEMPLATE_INSIDE)
_MESSAGE = replace(
    _COUNT,
    sampling={"temperature": "temperature", "top_p": "top_p", "stop": "stop_sequences"},
    longest=("max_tokens",),
)
_FORMS = {
    "/v1/chat/completions": _CHAT,
    "/v1/completions": _Form(sampling=_SAMPLING, longest=("max_tokens",)),
    "/v1/responses": _RESPONSE,
    "/v1/responses/render": _RESPONSE,
    "/v1/messages": _MESSAGE,
    "/v1/messages/count_tokens": _COUNT,
}
"""By endpoint; one that is not here has nothing that settings could fill."""


class _Turn(Struct):
    role: Any = None


_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_list = msgspec.json.Decoder(list[Raw]).decode
_decode_turns = msgspec.json.Decoder(list[_Turn]).decode


def with_defaults(endpoint: str, body: bytes, settings: ModelSettingsRecord) -> bytes:
    """Return a request with a model's settings in it; as it was, byte for byte, where none applies.

    What is not as the endpoint documents it stays as it is, for the inference server to refuse.
    """
    form = _FORMS.get(endpoint)
    if form is None:
        return body
    sent = {name: value for name, value in _decode_fields(body).items() if bytes(value) != b"null"}
    changes = {**_sampling(form, sent, settings), **_prompt(form, sent, settings), **_template(form, sent, settings)}
    return with_fields(body, **changes) if changes else body


def _sampling(form: _Form, sent: Mapping[str, Raw], settings: ModelSettingsRecord) -> dict[str, Any]:
    filled = {
        theirs: value
        for ours, theirs in form.sampling.items()
        if theirs not in sent and (value := getattr(settings, ours)) is not None
    }
    if form.longest and settings.max_completion_tokens is not None and sent.keys().isdisjoint(form.longest):
        filled[form.longest[0]] = settings.max_completion_tokens
    return filled


def _prompt(form: _Form, sent: Mapping[str, Raw], settings: ModelSettingsRecord) -> dict[str, Any]:
    """Put the system prompt before a conversation that has none."""
    if settings.system_prompt is None or form.conversation not in sent or form.system in sent:
        return {}
    conversation = sent[form.conversation]
    if _is_text(conversation):
        return {form.system: settings.system_prompt} if form.system else {}
    try:
        turns = _decode_turns(conversation)
    except msgspec.MsgspecError:
        return {}
    if not turns or any(isinstance(turn.role, str) and turn.role in _SYSTEM_ROLES for turn in turns):
        return {}
    if form.system:
        return {form.system: settings.system_prompt}
    system = {"role": "system", "content": settings.system_prompt}
    return {form.conversation: [system, *_decode_list(conversation)]}


def _is_text(value: Raw) -> bool:
    return bytes(value).startswith(b'"')


def _template(form: _Form, sent: Mapping[str, Raw], settings: ModelSettingsRecord) -> dict[str, Any]:
    """Name the chat template where vLLM takes one; the View has made sure that the client names none."""
    if settings.chat_template is None or not form.template:
        return {}
    if form.template == _TEMPLATE:
        return {_TEMPLATE: settings.chat_template}
    values = _decode_fields(sent[_TEMPLATE_INSIDE]) if _TEMPLATE_INSIDE in sent else {}
    return {_TEMPLATE_INSIDE: {**values, _TEMPLATE: settings.chat_template}}
