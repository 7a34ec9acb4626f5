"""Retraining proposals as they are stored; reading is tolerant, as in shared/records.py."""

from __future__ import annotations

from msgspec import Struct

from shared.model_records import Access
from shared.schemas.evals import EvalError
from shared.schemas.retraining import ProposalStatus, RetrainingPlan, RetrainingProposal


class ProposalRecord(Struct, frozen=True, kw_only=True):
    """A proposal. The ids of file and job are in it before either is made."""

    id: str
    project: str
    alias: str
    model: str
    created_at: int
    status: ProposalStatus = "open"
    alarms: list[str] = []
    window_id: str = ""
    plan: RetrainingPlan
    is_automatic: bool = False
    decided_at: int | None = None
    key_id: str = ""
    key_name: str = ""
    is_admin: bool = False
    reason: str = ""
    file_id: str = ""
    job_id: str = ""
    error: EvalError = EvalError()

    @property
    def access(self) -> Access:
        return Access(project=self.project, key_id=self.key_id, is_admin=self.is_admin)

    def public(self) -> RetrainingProposal:
        return RetrainingProposal(
            id=self.id,
            alias=self.alias,
            model=self.model,
            created_at=self.created_at,
            status=self.status,
            alarms=self.alarms,
            window_id=self.window_id,
            plan=self.plan,
            automatic=self.is_automatic,
            decided_at=self.decided_at,
            key_id=self.key_id or None,
            key_name=self.key_name or None,
            reason=self.reason,
            training_file=self.file_id or None,
            job_id=self.job_id or None,
            error=self.error,
        )
