"""Checkpoints: the model at the end of an epoch."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct


class CheckpointMetrics(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Metrics at the checkpoint's step; losses in nats per token, accuracies from 0 to 1, rewards as graders give them.

    `valid_reward_mean` is of the whole validation file.
    """

    step: float | None = None
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None
    train_reward_mean: float | None = None
    valid_reward_mean: float | None = None


class Checkpoint(Struct, frozen=True, kw_only=True):
    """A model that can be used like the final one."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str
    step_number: int
    metrics: CheckpointMetrics


class GrantPermissions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/fine_tuning/checkpoints/{model}/permissions."""

    project_ids: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=128)]],
        Meta(min_length=1, max_length=100, description="Projects that may use the model from now on."),
    ]


class CheckpointPermission(Struct, frozen=True, kw_only=True):
    """A project's right to use a model or checkpoint of another project."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str
