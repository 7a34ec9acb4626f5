"""What the jobs of a sweep have come to, taken over into its runs."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from services.api.flow_jobs import failure_of
from shared.records import JobRecord
from shared.states import JobState
from shared.sweep_records import SweepRecord, SweepRunRecord


def noted(record: SweepRecord, jobs: Mapping[str, JobRecord]) -> SweepRecord:
    """Return a sweep with the status, cost and model of those jobs, by id; runs without one of them stay so."""
    runs = [_noted(run, jobs[run.job_id]) if run.job_id in jobs else run for run in record.runs]
    return replace(record, runs=tuple(runs))


def _noted(run: SweepRunRecord, job: JobRecord) -> SweepRunRecord:
    run = replace(
        run,
        status=job.status.value,
        device_seconds=job.device_seconds,
        price=job.cost.price,
        currency=job.cost.currency,
    )
    if job.status is JobState.SUCCEEDED:
        return replace(run, model=job.fine_tuned_model or "")
    return replace(run, error=failure_of(job))
