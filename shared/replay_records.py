"""What is stored of replays. Reading is tolerant, as in records.py."""

from __future__ import annotations

from msgspec import Struct

from shared.flow_records import FlowError, FlowRecord
from shared.schemas.evals import PassComparison, Verdict
from shared.schemas.replays import Replay, ReplayError, ReplayRow
from shared.schemas.sweeps import ModelEval, RowCounts

REPLAY = "replay"
"""The kind of these flows."""


class ReplayRowRecord(Struct, frozen=True, kw_only=True):
    """A row; its job, and the runs of both models, are made under these ids."""

    model: str
    replayed_job_id: str = ""
    job_id: str
    champion_run_id: str
    challenger_run_id: str
    status: str = "waiting"
    has_job: bool = False
    challenger: str = ""
    champion_pass_rate: float | None = None
    challenger_pass_rate: float | None = None
    champion_rows: RowCounts | None = None
    challenger_rows: RowCounts | None = None
    verdict: Verdict | None = None
    passing: PassComparison | None = None
    remarks: tuple[str, ...] = ()
    error: FlowError | None = None

    @property
    def is_over(self) -> bool:
        return self.error is not None or self.verdict is not None

    def public(self) -> ReplayRow:
        is_evaluated = bool(self.challenger)
        return ReplayRow(
            model=self.model,
            replayed_job_id=self.replayed_job_id or None,
            job_id=self.job_id if self.has_job else None,
            status=self.status,
            challenger=self.challenger or None,
            champion_run_id=self.champion_run_id if is_evaluated else None,
            challenger_run_id=self.challenger_run_id if is_evaluated else None,
            champion_pass_rate=self.champion_pass_rate,
            challenger_pass_rate=self.challenger_pass_rate,
            champion_rows=self.champion_rows,
            challenger_rows=self.challenger_rows,
            verdict=self.verdict,
            passing=self.passing,
            remarks=list(self.remarks),
            error=_shown(self.error),
        )


class ReplayRecord(FlowRecord, frozen=True, kw_only=True):
    """A replay."""

    base: str
    suffix: str | None = None
    eval: ModelEval
    metadata: dict[str, str] | None = None
    rows: tuple[ReplayRowRecord, ...] = ()

    def public(self) -> Replay:
        return Replay(
            id=self.id,
            created_at=self.created_at,
            finished_at=self.ended_at,
            status=self.status.value,
            error=_shown(self.error),
            base=self.base,
            suffix=self.suffix,
            eval_id=self.eval.eval_id,
            rows=[row.public() for row in self.rows],
            metadata=self.metadata,
        )


def _shown(error: FlowError | None) -> ReplayError | None:
    return None if error is None else ReplayError(code=error.code, message=error.message)
