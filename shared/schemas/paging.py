"""Lists, as OpenAI pages them: newest first, `after` is the last id of the page before."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from msgspec import UNSET, Struct, UnsetType

T = TypeVar("T")


class Page(Struct, Generic[T], frozen=True, kw_only=True):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | UnsetType = UNSET
    last_id: str | UnsetType = UNSET
    """Absent on an empty page: in OpenAI's specification they are strings, never null."""
    has_more: bool = False


class Deleted(Struct, frozen=True, kw_only=True):
    """Answer to a deletion."""

    id: str
    object: Literal["file", "model", "checkpoint.permission"]
    deleted: Literal[True] = True
