"""What becomes of a row with more tokens than a job takes: nothing without being asked for, and nothing in silence."""

from __future__ import annotations

from typing import Literal, TypeAlias

Overlong: TypeAlias = Literal["refuse", "drop", "truncate_prompt"]

DROPPED = -1
REFUSED = -2


def tokens_to_cut(width: int, prompt: int, max_length: int, policy: Overlong) -> int:
    """Return how many tokens a row loses from the left of its prompt, or DROPPED, or REFUSED.

    `width` is that of the longer side, `prompt` the number of tokens before the first target, of the side with fewer.
    One token always stays before the first target, and no target is ever cut.
    """
    excess = width - max_length
    if excess <= 0:
        return 0
    if policy == "drop":
        return DROPPED
    return excess if policy == "truncate_prompt" and excess < prompt else REFUSED


def first_kept(first_id: int, bos_id: int | None) -> int:
    """Return where cutting begins: behind a token that marks the beginning of a text, which a row keeps."""
    return 1 if bos_id is not None and first_id == bos_id else 0
