"""The steps of a distillation, each of which may be taken again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from services.api.distillation.collecting import Collecting
from services.api.distillation.data_set import DataSets
from services.api.distillation.evaluation import Evaluation
from services.api.distillation.jobs import StudentJobs
from services.api.flows import FlowFailed, FlowRunner
from services.api.leftovers import Leftovers
from shared.blobs.interface import Blobs
from shared.distillation_records import KIND, DistillationRecord, Step, stage_of
from shared.flow_states import FlowState
from shared.schemas.distillations import RunRole
from shared.states import JobState
from shared.store.flows import FlowStore
from shared.store.leases import LeaseStore

_HELD_OUT: tuple[RunRole, ...] = ("teacher", "base", "student")


@dataclass(frozen=True)
class Parts:
    """What distillations are made with."""

    collecting: Collecting
    data_sets: DataSets
    evaluation: Evaluation
    jobs: StudentJobs
    blobs: Blobs

    async def clean_up(self, record: DistillationRecord) -> None:
        """Stop what a distillation has begun, and remove its folder; files, jobs, models and evals stay."""
        await self.jobs.stop(record)
        await self.evaluation.stop(record)
        await self.blobs.remove(self.blobs.paths.flow_folder(KIND, record.id))


class DistillationRunner(FlowRunner[DistillationRecord]):
    one, several, one_id = "distillation", "distillations", "distillation_id"

    def __init__(
        self,
        flows: FlowStore[DistillationRecord],
        leases: LeaseStore,
        parts: Parts,
        leftovers: Leftovers,
        drain: asyncio.Event,
    ) -> None:
        super().__init__(flows, leases, leftovers, drain)
        self._parts = parts
        self._steps: dict[Step, Callable[[DistillationRecord], Awaitable[DistillationRecord]]] = {
            "collect": self._collect,
            "grade": self._grade,
            "await_grades": self._await_grades,
            "select": self._select,
            "train": self._train,
            "await_job": self._await_job,
            "evaluate": self._evaluate,
            "await_runs": self._await_runs,
            "compare": self._compare,
        }

    async def advance(self, record: DistillationRecord) -> DistillationRecord:
        stage = stage_of(record.step)
        if stage is not None and stage not in record.times:
            return replace(record, times={**record.times, stage: [int(time.time())]})
        return await self._steps[record.step](record)

    async def clean_up(self, record: DistillationRecord) -> None:
        await self._parts.clean_up(record)

    async def _collect(self, record: DistillationRecord) -> DistillationRecord:
        await self._parts.collecting.collect(record)
        if record.source.type == "stored_completions" and not record.filter.minimum_scores:
            return _gone_on(record, "select", skips_grading=True)
        return _gone_on(record, "grade")

    async def _grade(self, record: DistillationRecord) -> DistillationRecord:
        await self._parts.data_sets.publish_candidates(record)
        await self._parts.evaluation.begin_candidates(record)
        return _gone_on(record, "await_grades")

    async def _await_grades(self, record: DistillationRecord) -> DistillationRecord:
        run = await self._parts.evaluation.ended(record, "candidates")
        return record if run is None else _gone_on(record, "select", runs=[run])

    async def _select(self, record: DistillationRecord) -> DistillationRecord:
        return _gone_on(record, "train", counts=await self._parts.data_sets.select(record))

    async def _train(self, record: DistillationRecord) -> DistillationRecord:
        await self._parts.jobs.submit(record)
        return _gone_on(record, "await_job")

    async def _await_job(self, record: DistillationRecord) -> DistillationRecord:
        job = await self._parts.jobs.ended(record)
        if job is None:
            return record
        if job.status is not JobState.SUCCEEDED or job.fine_tuned_model is None:
            why = job.error.message if job.error else "It was cancelled."
            raise FlowFailed("student_job_failed", f"The student's job {job.id} did not succeed: {why}")
        return _gone_on(record, "evaluate", fine_tuned_model=job.fine_tuned_model, trained_tokens=job.trained_tokens)

    async def _evaluate(self, record: DistillationRecord) -> DistillationRecord:
        await self._parts.evaluation.begin_held_out(record)
        return _gone_on(record, "await_runs")

    async def _await_runs(self, record: DistillationRecord) -> DistillationRecord:
        known = {run.role for run in record.runs}
        for role in _HELD_OUT:
            if role not in known and (run := await self._parts.evaluation.ended(record, role)) is not None:
                return replace(record, runs=[*record.runs, run])
        return _gone_on(record, "compare") if known.issuperset(_HELD_OUT) else record

    async def _compare(self, record: DistillationRecord) -> DistillationRecord:
        compared = await self._parts.evaluation.compared(record)
        return _gone_on(record, "end", comparisons=compared, status=FlowState.COMPLETED)


def _gone_on(record: DistillationRecord, step: Step, **changes: Any) -> DistillationRecord:
    """Return a record at its next step; where that is of another stage, the one before has ended."""
    stage, times = stage_of(record.step), record.times
    if stage is not None and stage_of(step) != stage:
        times = {**times, stage: [*times.get(stage, []), int(time.time())]}
    return replace(record, step=step, times=times, **changes)
