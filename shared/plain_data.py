"""Lines for supervised training without a conversation: a prompt with its completion, or text alone."""

from __future__ import annotations

from msgspec import Struct


class CompletionExample(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A text and how it goes on; the completion and an end-of-text token behind it are learnt."""

    prompt: str
    completion: str


class TextExample(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """Text of which every token but the first is learnt, and an end-of-text token behind it."""

    text: str


def check_completion(example: CompletionExample) -> int:
    """Return 1; raises ValueError when there is nothing to learn."""
    if not example.completion:
        raise ValueError("completion is empty, so there is nothing to learn from it")
    return 1


def check_plain_text(example: TextExample) -> int:
    """Return 1; raises ValueError when there is nothing to learn."""
    if not example.text:
        raise ValueError("text is empty, so there is nothing to learn from it")
    return 1
