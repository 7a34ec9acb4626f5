"""What runs of a sweep are ranked by: their validation, or an eval."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec.structs import replace

from shared.errors import NotFound
from shared.flow_records import FlowError
from shared.records import JobRecord
from shared.schemas.sweeps import MetricName
from shared.store.jobs import JobStore
from shared.sweep_records import SweepAxis, SweepRecord, SweepRunRecord

_PAGE = 100
_MOST_EVENTS = 10_000
_CHANGES_LOSS = frozenset(
    {"beta", "desirable_weight", "undesirable_weight", "selftune.max_length", "selftune.overlong"}
)
"""Lists of these make losses that cannot be compared: they are in the loss itself, or decide which rows it is of."""


def incomparable(axes: Sequence[SweepAxis]) -> str | None:
    """Return the path of a list that leaves validation losses without a common measure; None if there is none."""
    return next((".".join(axis.path) for axis in axes if axis.name in _CHANGES_LOSS), None)


async def validation_value(jobs: JobStore, job: JobRecord, metric: MetricName) -> float | None:
    """Return what the validation file said of a job's final model; None where it said nothing that is a number."""
    if metric == "full_valid_loss":
        return await _final_loss(jobs, job)
    return await _final_reward(jobs, job.id)


async def _final_loss(jobs: JobStore, job: JobRecord) -> float | None:
    for checkpoint in await jobs.checkpoints(job.id):
        if checkpoint.fine_tuned_model_checkpoint == job.fine_tuned_model:
            return _finite(checkpoint.metrics.full_valid_loss)
    return None


async def _final_reward(jobs: JobStore, job_id: str) -> float | None:
    """Look for the newest evaluation among a reinforcement job's events."""
    after: str | None = None
    for _ in range(_MOST_EVENTS // _PAGE):
        try:
            events, more = await jobs.events(job_id, after=after, limit=_PAGE)
        except NotFound:
            return None
        for told in events:
            stats = told.data.get("valid_rollouts")
            if isinstance(stats, dict):
                return _finite(stats.get("reward_mean"))
        if not more:
            return None
        after = events[-1].id
    return None


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def ranked(record: SweepRecord) -> SweepRecord:
    """Give each run that has a value its rank, equal ones the same."""
    values = [run.value for run in record.runs if run.value is not None]
    runs = [replace(run, rank=_rank(run, values, lower=record.is_lower_better)) for run in record.runs]
    return replace(record, runs=tuple(runs))


def _rank(run: SweepRunRecord, values: Sequence[float], *, lower: bool) -> int | None:
    if run.value is None:
        return None
    return 1 + sum(other < run.value if lower else other > run.value for other in values)


def runner_up(record: SweepRecord) -> SweepRunRecord | None:
    """Return the best run beside the best one; None where there is no other with a value."""
    best = record.best()
    others = [run for run in record.runs if run.rank is not None and run is not best]
    return min(others, key=lambda run: run.rank or 0, default=None)


def behind(record: SweepRecord) -> list[SweepRunRecord]:
    """Return the runs whose models the best one makes needless.

    None where the eval has contradicted the ranks, or some of the best one's rows could not be graded; and never a run
    that was not ranked, or not by all of its rows.
    """
    best = record.best()
    if best is None or record.lead == "worse" or _is_partial(best):
        return []
    return [run for run in record.runs if run is not best and run.rank is not None and not _is_partial(run)]


def _is_partial(run: SweepRunRecord) -> bool:
    return run.rows is not None and run.rows.errored > 0


NO_VALUE = FlowError(code="no_value", message="The job has no validation result to be ranked by.")
