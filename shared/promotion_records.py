"""Promotions, and what gates have seen of models, as they are stored; reading is tolerant, as in shared/records.py."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec
from msgspec import Struct

from shared.flow_records import FlowRecord
from shared.schemas.evals import EvalError
from shared.schemas.gates import Gate
from shared.schemas.promotions import GateFigures, Promotion, PromotionOutcome


class PromotionRecord(FlowRecord, frozen=True, kw_only=True):
    """A model on its way through a gate, or the model behind the gate that is looked at again."""

    kind: Literal["promotion", "recheck"] = "promotion"
    alias: str
    alias_uid: str
    model: str
    current: str
    """The model that the alias pointed to when this began."""
    gate: Gate
    reason: str = ""
    key_name: str = ""
    wait_warm: bool = True
    eval_run_id: str = ""
    current_run_id: str = ""
    """Empty where nothing is compared."""
    are_begun: bool = False
    """Whether the runs are there."""
    figures: GateFigures | None = None
    has_passed: bool = False
    """What follows of `figures`."""
    message: str = ""
    outcome: PromotionOutcome | None = None

    @property
    def run_ids(self) -> list[str]:
        return [one for one in (self.eval_run_id, self.current_run_id) if one]

    def public(self) -> Promotion:
        error = EvalError() if self.error is None else EvalError(code=self.error.code, message=self.error.message)
        return Promotion(
            id=self.id,
            kind=self.kind,
            alias=self.alias,
            model=self.model,
            current_model=self.current,
            status=self.status.value,
            outcome=self.outcome,
            message=self.message,
            gate=self.gate,
            eval_run_id=self.eval_run_id or None,
            current_eval_run_id=self.current_run_id or None,
            figures=self.figures,
            reason=self.reason,
            created_at=self.created_at,
            ended_at=self.ended_at,
            error=error,
        )


class GateRun(Struct, frozen=True, kw_only=True):
    """What an alias's gate saw last of a model."""

    model: str
    run_id: str
    asked: str
    """What was asked: see `asked_of`."""
    at: int
    """Unix time at which it was judged."""
    has_passed: bool
    """Whether it passed; of a model that others were compared with, whether it has the least pass rate."""
    passed_run_id: str = ""
    """The run with which it had passed when it was promoted, or first, whatever was seen since: rechecks are compared
    with that. Empty if it never passed what is asked."""


def asked_of(gate: Gate) -> str:
    """Name the eval and the rows of a gate: the same for gates that ask models the same."""
    asked = [gate.eval_id, msgspec.to_builtins(gate.data_source)]
    return hashlib.sha256(msgspec.json.encode(asked, order="sorted")).hexdigest()[:32]
