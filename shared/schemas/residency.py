"""Where a model is in memory: GET and POST /v1/models/{model}/residency."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct


class ReplicaResidency(Struct, frozen=True, kw_only=True):
    """How a model stands on one inference server."""

    replica: str
    replica_state: Literal["waiting", "starting", "ready", "draining"]
    state: Annotated[
        Literal["staged", "loading", "warm", "draining", "failed", "quarantined"],
        Meta(
            description="`warm`: in memory, as the engine says; `staged`: loads at its first request; `failed`: "
            "refused for a while; `quarantined`: refused until it is asked for here."
        ),
    ]
    reason: str | None
    owner: Annotated[bool, Meta(description="Whether requests for it go to this server first.")]
    load_ms: Annotated[float, Meta(description="How long it took to load, in milliseconds.")] | None
    since: Annotated[int, Meta(description="Unix time of the last change that the server told.")] | None
    running: Annotated[int, Meta(description="Requests that the server is answering, for all models.")]


class ModelResidency(Struct, frozen=True, kw_only=True):
    """How a model stands on every inference server of its base that is alive."""

    object: Literal["model.residency"] = "model.residency"
    model: str
    base: str
    pinned: bool
    warm: Annotated[int, Meta(description="On how many servers it is in memory and can answer.")]
    replicas: list[ReplicaResidency]


class BringIntoMemory(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/models/{model}/residency."""

    state: Literal["warm"]
