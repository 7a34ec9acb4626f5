"""What is stored of sweeps. Reading is tolerant, as in records.py."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from shared.flow_records import FlowError, FlowRecord
from shared.schemas.costs import JobCost
from shared.schemas.evals import Verdict
from shared.schemas.sweeps import (
    Keep,
    MetricName,
    ModelEval,
    RowCounts,
    Sweep,
    SweepBest,
    SweepError,
    SweepMetric,
    SweepRun,
)

SWEEP = "sweep"
"""The kind of these flows."""
SWEEP_ID = "sweep_id"
"""Under which name a job's metadata have the sweep that it is of, if there is room."""


class SweepAxis(Struct, frozen=True, kw_only=True):
    """A list in a sweep's body."""

    name: str
    path: list[str]
    """Where it stands."""
    values: list[Any]


class SweepRunRecord(Struct, frozen=True, kw_only=True):
    """A run of a sweep; its job, and its run of the eval, are made under these ids."""

    job_id: str
    eval_run_id: str = ""
    """Empty without an eval."""
    picks: list[int]
    """Which value it has of each axis."""
    status: str = "waiting"
    model: str = ""
    is_kept: bool = True
    value: float | None = None
    rows: RowCounts | None = None
    """Of its run of the eval."""
    rank: int | None = None
    error: FlowError | None = None
    device_seconds: float = 0.0
    price: float | None = None
    currency: str | None = None


class SweepRecord(FlowRecord, frozen=True, kw_only=True):
    """A sweep. `body` is the body of its jobs, without the lists."""

    body: dict[str, Any]
    axes: list[SweepAxis]
    grid_size: int
    seed: int | None = None
    keep: Keep = "all"
    metric: MetricName = "full_valid_loss"
    eval: ModelEval | None = None
    metadata: dict[str, str] | None = None
    runs: tuple[SweepRunRecord, ...] = ()
    lead: Verdict | None = None

    @property
    def is_lower_better(self) -> bool:
        return self.metric == "full_valid_loss"

    def parameters(self, run: SweepRunRecord) -> dict[str, Any]:
        """Return the values that a run has, by the axes' names."""
        return {axis.name: axis.values[pick] for axis, pick in zip(self.axes, run.picks, strict=True)}

    def best(self) -> SweepRunRecord | None:
        """Return the run with the first rank; of several the one that was made first."""
        return next((run for run in self.runs if run.rank == 1), None)

    def public(self) -> Sweep:
        best = self.best()
        return Sweep(
            id=self.id,
            created_at=self.created_at,
            finished_at=self.ended_at,
            status=self.status.value,
            error=_shown(self.error),
            model=self.body["model"],
            training_file=self.body["training_file"],
            validation_file=self.body.get("validation_file"),
            parameters={axis.name: axis.values for axis in self.axes},
            grid_size=self.grid_size,
            seed=self.seed,
            metric=SweepMetric(name=self.metric, better="lower" if self.is_lower_better else "higher"),
            keep=self.keep,
            eval_id=None if self.eval is None else self.eval.eval_id,
            runs=[self._run(run) for run in self.runs],
            best=None if best is None else self._best(best),
            cost=self._cost(),
            metadata=self.metadata,
        )

    def _run(self, run: SweepRunRecord) -> SweepRun:
        return SweepRun(
            job_id=run.job_id,
            parameters=self.parameters(run),
            status=run.status,
            model=run.model or None,
            model_kept=bool(run.model) and run.is_kept,
            eval_run_id=run.eval_run_id or None,
            value=run.value,
            rows=run.rows,
            rank=run.rank,
            error=_shown(run.error),
        )

    def _best(self, run: SweepRunRecord) -> SweepBest:
        assert run.value is not None
        return SweepBest(job_id=run.job_id, model=run.model, value=run.value, lead=self.lead)

    def _cost(self) -> JobCost:
        """Add up the jobs; there is a price if all that took time have one."""
        dear = [run for run in self.runs if run.device_seconds]
        prices = [run.price for run in dear if run.price is not None]
        return JobCost(
            device_seconds=round(sum(run.device_seconds for run in dear), 3),
            price=round(sum(prices), 6) if dear and len(prices) == len(dear) else None,
            currency=dear[-1].currency if dear else None,
        )


def _shown(error: FlowError | None) -> SweepError | None:
    return None if error is None else SweepError(code=error.code, message=error.message)
