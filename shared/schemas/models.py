"""Models as the API lists them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct


class Model(Struct, frozen=True, kw_only=True):
    """A base model or a fine-tuned one."""

    id: str
    object: Literal["model"] = "model"
    created: Annotated[int, Meta(description="Unix time in seconds.")]
    owned_by: str


class ModelList(Struct, frozen=True, kw_only=True):
    """Every model that the key may use; never paged."""

    object: Literal["list"] = "list"
    data: list[Model]
