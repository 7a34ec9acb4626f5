"""Where a job's metrics go besides this server: OpenAI's `integrations`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct


class WandbSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which Weights & Biases run a job writes to."""

    project: Annotated[str, Meta(min_length=1, max_length=128, description="Project that the run belongs to.")]
    name: Annotated[str, Meta(max_length=128, description="Name of the run; the job's id if left out.")] | None = None
    entity: Annotated[str, Meta(max_length=128, description="Team or user; the key's own if left out.")] | None = None
    tags: Annotated[list[Annotated[str, Meta(min_length=1, max_length=64)]], Meta(max_length=64)] = []


class WandbIntegration(Struct, frozen=True, kw_only=True, tag_field="type", tag="wandb", forbid_unknown_fields=True):
    """Log every step to Weights & Biases: online with a key on the trainer, else into files for `wandb sync`."""

    wandb: WandbSettings


class WandbRun(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The settings of a request, and the run that they led to."""

    project: str
    name: str | None = None
    entity: str | None = None
    tags: list[str] = []
    run_id: Annotated[str, Meta(description="Id of the run; there once training has started.")] | None = None


class JobIntegration(Struct, frozen=True, kw_only=True):
    """An integration as a job shows it."""

    type: Literal["wandb"] = "wandb"
    wandb: WandbRun
