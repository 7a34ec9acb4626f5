"""Lists, as OpenAI pages them: newest first, `after` is the last id of the page before."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from msgspec import Struct

T = TypeVar("T")


class Page(Struct, Generic[T], frozen=True, kw_only=True):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str = ""
    last_id: str = ""
    """Empty on an empty page: where OpenAI's specification has them, they are required strings."""
    has_more: bool = False


class Deleted(Struct, frozen=True, kw_only=True):
    """Answer to a deletion."""

    id: str
    object: Literal["file", "model", "checkpoint.permission"]
    deleted: Literal[True] = True


class CompletionDeleted(Struct, frozen=True, kw_only=True):
    """Answer to the deletion of a stored chat completion."""

    id: str
    object: Literal["chat.completion.deleted"] = "chat.completion.deleted"
    deleted: Literal[True] = True


class ResponseDeleted(Struct, frozen=True, kw_only=True):
    """Answer to the deletion of a stored response."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True
