"""What is stored of a model's settings, and who may see a model. Reading is tolerant, as in records.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from shared.schemas.model_settings import ModelSettings


class Access(Struct, frozen=True, kw_only=True):
    """For whom a model is looked up: a project, and the key in it."""

    project: str
    key_id: str = ""
    is_admin: bool = False
    """Whether the key has the scope `admin`; it could let itself in, so it is never shut out."""

    def is_among(self, allowed_keys: Sequence[str] | None) -> bool:
        """Tell whether a model that is for these keys is for this one; None is for all."""
        return allowed_keys is None or self.is_admin or self.key_id in allowed_keys


class ModelSettingsRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an owner has set for a fine-tuned model; None is not set. Whether it is pinned is kept in the registry."""

    revision: int = 0
    updated_at: int | None = None
    system_prompt: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_completion_tokens: int | None = None
    stop: list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    chat_template: str | None = None
    allowed_keys: list[str] | None = None
    """Stored beside the rest, so that lists of models read it alone."""

    def public(self, model: str, *, pinned: bool) -> ModelSettings:
        return ModelSettings(model=model, pinned=pinned, **asdict(self))


_decode = msgspec.json.Decoder(ModelSettingsRecord).decode
_decode_keys = msgspec.json.Decoder(list[str]).decode
_encode = msgspec.json.Encoder().encode

STORED = ("record", "allowed_keys")
"""Fields of the hash in which settings are kept."""


def read_settings(stored: Sequence[Any]) -> ModelSettingsRecord | None:
    """Read the values of the fields STORED; None when the model has no settings."""
    record, allowed_keys = stored
    if record is None:
        return None
    return replace(_decode(record), allowed_keys=read_keys(allowed_keys))


def read_keys(stored: bytes | None) -> list[str] | None:
    """Read the field `allowed_keys`, which is missing where every key is allowed."""
    return None if stored is None else _decode_keys(stored)


def written_settings(record: ModelSettingsRecord) -> tuple[bytes, bytes]:
    """Form the values of the fields STORED; the second is empty where every key is allowed."""
    keys = record.allowed_keys
    return _encode(replace(record, allowed_keys=None)), b"" if keys is None else _encode(keys)
