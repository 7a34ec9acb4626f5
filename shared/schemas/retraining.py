"""Proposals to train an alias's model again."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from shared.schemas.aliases import Reason
from shared.schemas.evals import EvalError
from shared.schemas.methods import SupervisedHyperparameters

ProposalStatus: TypeAlias = Literal["open", "approved", "started", "dismissed", "failed"]


class DecideProposal(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/aliases/{alias}/proposals/{proposal_id}/approve, and of …/dismiss."""

    reason: Reason = ""


class RetrainingPlan(Struct, frozen=True, kw_only=True):
    """What would be trained: known when the proposal is made, and looked at again when it is approved."""

    model: Annotated[str, Meta(description="What training starts from.")]
    former_job_id: Annotated[str | None, Meta(description="The job that is repeated; null where there is none to.")]
    training_file: Annotated[str | None, Meta(description="Whose rows are trained on, too.")]
    answers: Annotated[int, Meta(description="Collected answers that are good enough.")]
    hyperparameters: SupervisedHyperparameters
    estimated_tokens: Annotated[int, Meta(description="A quarter of the characters, times the epochs.")]


class RetrainingProposal(Struct, frozen=True, kw_only=True):
    """An alarm has been raised, and this would answer it."""

    id: str
    object: Literal["alias.retraining_proposal"] = "alias.retraining_proposal"
    alias: str
    model: Annotated[str, Meta(description="The alias's model when the alarm was raised.")]
    created_at: int
    status: Annotated[
        ProposalStatus,
        Meta(description="`approved` until the job is created; `started` since, whatever becomes of the job."),
    ]
    alarms: list[str]
    window_id: Annotated[str, Meta(description="The window that raised them.")]
    plan: RetrainingPlan
    automatic: Annotated[bool, Meta(description="Whether it was approved by the monitor's action `retrain`.")]
    decided_at: int | None
    key_id: Annotated[str | None, Meta(description="The key that has decided.")]
    key_name: str | None
    reason: str
    training_file: Annotated[str | None, Meta(description="The file that was made for the job.")]
    job_id: str | None
    error: EvalError
