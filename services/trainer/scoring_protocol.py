"""What the worker and the scoring process say to each other: a Batch, and one line in answer."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from shared.chat_data import Message


class Batch(Struct, frozen=True, kw_only=True):
    """Conversations for one reward model; paths are absolute."""

    base_folder: str
    adapter_folder: str
    sha256: str
    """What the adapter's folder has to hold."""
    max_length: int
    """Longest conversation in tokens."""
    conversations: list[list[Message]]


class Scored(Struct, frozen=True, kw_only=True, tag="scored"):
    """A score for each conversation, in their order, or a reason why there is none."""

    scores: list[float | None]
    """None for one that is not finite, too."""
    problems: list[str]
    """Empty where there is a score."""


class NotScored(Struct, frozen=True, kw_only=True, tag="not_scored"):
    """The model cannot score anything."""

    reason: str


batch_decoder = msgspec.json.Decoder(Batch)
answer_decoder: msgspec.json.Decoder[Scored | NotScored] = msgspec.json.Decoder(Scored | NotScored)
