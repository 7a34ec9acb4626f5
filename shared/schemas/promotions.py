"""Promotions: a model on its way through an alias's gate."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from shared.schemas.aliases import ExpectedRevision, ModelId, Reason, WaitWarm
from shared.schemas.evals import EvalError, Verdict
from shared.schemas.gates import Gate

PromotionStatus: TypeAlias = Literal["queued", "in_progress", "completed", "failed", "canceled"]
PromotionOutcome: TypeAlias = Literal["promoted", "refused", "passed", "rolled_back", "stays"]


class CreatePromotion(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/aliases/{alias}/promotions."""

    model: ModelId
    expected_revision: ExpectedRevision | None = None
    reason: Reason = ""
    wait_warm: WaitWarm = True


class GateFigures(Struct, frozen=True, kw_only=True):
    """What the gate saw, over the same rows; a row with an error has not passed."""

    rows: int
    passed: int
    pass_rate: float
    passed_by_current: int | None = None
    current_pass_rate: float | None = None
    only_candidate: Annotated[int | None, Meta(description="Rows that only the candidate passed.")] = None
    only_current: int | None = None
    p_value: Annotated[float | None, Meta(description="McNemar's exact test, two-sided.")] = None
    verdict: Annotated[Verdict | None, Meta(description="The candidate against the current model.")] = None


class Promotion(Struct, frozen=True, kw_only=True):
    """A model that is evaluated, and the alias that points to it if it passes."""

    id: str
    object: Literal["alias.promotion"] = "alias.promotion"
    kind: Annotated[
        Literal["promotion", "recheck"], Meta(description="A recheck evaluates the model that the alias points to.")
    ]
    alias: str
    model: Annotated[str, Meta(description="The model that is evaluated.")]
    current_model: Annotated[str, Meta(description="The one that the alias pointed to when this began.")]
    status: PromotionStatus
    outcome: Annotated[PromotionOutcome | None, Meta(description="Null until it is completed.")]
    message: Annotated[str, Meta(description="What the outcome is due to, with figures.")]
    gate: Gate
    eval_run_id: Annotated[str | None, Meta(description="Of `model`.")]
    current_eval_run_id: Annotated[str | None, Meta(description="Of what it is compared with.")]
    figures: GateFigures | None
    reason: str
    created_at: int
    ended_at: int | None
    error: EvalError
