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


class AdapterFiles(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True,
    rename={"config": "adapter_config.json", "weights": "adapter_model.safetensors"},
):  # fmt: skip
    """Ids of the two files of a PEFT adapter, uploaded with purpose `user_data`."""

    config: str
    weights: str


class ImportModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/models."""

    base: Annotated[str, Meta(description="The base model that the adapter was trained on, as it is called here.")]
    files: AdapterFiles
    suffix: (
        Annotated[str, Meta(min_length=1, max_length=64, description="A name of yours in the model's name.")] | None
    ) = None


class ImportedModel(Struct, frozen=True, kw_only=True):
    """A fine-tuned model that was made of an adapter from elsewhere."""

    id: str
    object: Literal["model"] = "model"
    created: Annotated[int, Meta(description="Unix time in seconds.")]
    owned_by: str
    base: str
    rank: Annotated[int, Meta(ge=1, description="Largest rank of any of its layers.")]
    sha256: Annotated[str, Meta(description="Over configuration and weights as they are kept here.")]
    warning: Annotated[str, Meta(description="What to look at although it fits, such as another base's name.")] | None
