"""How distillations are stored. The ids of everything that one makes are chosen with its own."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct, field

from shared import ids
from shared.flow_records import FlowRecord
from shared.flow_states import ENDED, FlowState
from shared.schemas.distillations import (
    Distillation,
    DistillationComparisons,
    DistillationCounts,
    DistillationError,
    DistillationEvaluation,
    DistillationFiles,
    DistillationFilter,
    DistillationRun,
    DistillationStage,
    RunRole,
    ShownSource,
    StageName,
    StageStatus,
    Student,
)
from shared.schemas.evals import ModelUsage
from shared.schemas.graders import Grader

KIND = "distillation"
DISTILLATION_ID = "distillation_id"
"""Under which name the metadata of a job, an eval or a run have the distillation that made it."""

Step: TypeAlias = Literal[
    "collect", "grade", "await_grades", "select", "train", "await_job", "evaluate", "await_runs", "compare", "end"
]
STAGES: dict[StageName, tuple[Step, ...]] = {
    "collecting": ("collect",),
    "grading": ("grade", "await_grades"),
    "selecting": ("select",),
    "training": ("train", "await_job"),
    "evaluating": ("evaluate", "await_runs", "compare"),
}
_STEPS: tuple[Step, ...] = (*(step for steps in STAGES.values() for step in steps), "end")


def stage_of(step: Step) -> StageName | None:
    """Return the stage that a step belongs to; None at the end."""
    return next((stage for stage, steps in STAGES.items() if step in steps), None)


class DistillationIds(Struct, frozen=True, kw_only=True):
    """Ids of what a distillation makes."""

    candidates: str
    training: str
    held_out: str
    manifest: str
    eval: str
    candidates_eval: str
    job: str
    runs: dict[RunRole, str]

    @classmethod
    def new(cls) -> DistillationIds:
        roles: tuple[RunRole, ...] = ("candidates", "teacher", "base", "student")
        return cls(
            candidates=ids.new_file_id(),
            training=ids.new_file_id(),
            held_out=ids.new_file_id(),
            manifest=ids.new_file_id(),
            eval=ids.new_eval_id(),
            candidates_eval=ids.new_eval_id(),
            job=ids.new_job_id(),
            runs={role: ids.new_eval_run_id() for role in roles},
        )


class DistillationRecord(FlowRecord, frozen=True, kw_only=True):
    """A distillation. `step` is what is done next."""

    name: str = ""
    metadata: dict[str, str] | None = None
    source: ShownSource
    filter: DistillationFilter
    graders: list[Grader]
    student: Student
    start_model: str
    """What `student.model` meant when the distillation was created: an alias may move meanwhile."""
    evaluation: DistillationEvaluation
    ids: DistillationIds
    step: Step = "collect"
    skips_grading: bool = False
    times: dict[StageName, list[int]] = field(default_factory=dict)
    """Unix times at which a stage was begun and ended."""
    counts: DistillationCounts = DistillationCounts()
    runs: list[DistillationRun] = field(default_factory=list)
    fine_tuned_model: str | None = None
    trained_tokens: int | None = None
    comparisons: DistillationComparisons = DistillationComparisons()

    def reached(self, step: Step) -> bool:
        """Tell whether a step was begun and done."""
        return _STEPS.index(step) < _STEPS.index(self.step)

    def public(self) -> Distillation:
        """Form the distillation with the ids of what is there so far."""
        is_graded, is_evaluated = self.reached("grade") and not self.skips_grading, self.reached("evaluate")
        begun = (*(_GRADED if is_graded else ()), *(_EVALUATED if is_evaluated else ()))
        selected = self.reached("select")
        return Distillation(
            id=self.id,
            name=self.name,
            status=self.status.value,
            created_at=self.created_at,
            started_at=self.started_at,
            ended_at=self.ended_at,
            error=DistillationError(code=self.error.code, message=self.error.message) if self.error else None,
            source=self.source,
            filter=self.filter,
            graders=self.graders,
            student=self.student,
            evaluation=self.evaluation,
            stages=[self._stage(name) for name in STAGES],
            counts=self.counts,
            files=DistillationFiles(
                candidates=self.ids.candidates if is_graded else None,
                training=self.ids.training if selected else None,
                held_out=self.ids.held_out if selected else None,
                manifest=self.ids.manifest if selected else None,
            ),
            eval_id=self.ids.eval if is_evaluated else None,
            candidates_eval_id=self.ids.candidates_eval if is_graded else None,
            run_ids={role: self.ids.runs[role] for role in begun},
            runs=self.runs,
            job_id=self.ids.job if self.reached("train") else None,
            fine_tuned_model=self.fine_tuned_model,
            trained_tokens=self.trained_tokens,
            usage=_added_up(self.runs),
            comparisons=self.comparisons,
            metadata=self.metadata,
        )

    def _stage(self, name: StageName) -> DistillationStage:
        started_at, ended_at = [*self.times.get(name, []), None, None][:2]
        return DistillationStage(name=name, status=self._status(name), started_at=started_at, ended_at=ended_at)

    def _status(self, name: StageName) -> StageStatus:
        if self.reached(STAGES[name][-1]):
            return "skipped" if name == "grading" and self.skips_grading else "completed"
        if self.step not in STAGES[name] or self.status is FlowState.QUEUED:
            return "pending"
        if self.status in ENDED:
            return "failed" if self.status is FlowState.FAILED else "canceled"
        return "in_progress"


_GRADED: tuple[RunRole, ...] = ("candidates",)
_EVALUATED: tuple[RunRole, ...] = ("teacher", "base", "student")


def _added_up(runs: list[DistillationRun]) -> list[ModelUsage]:
    found: dict[str, ModelUsage] = {}
    for usage in (usage for run in runs for usage in run.per_model_usage):
        before = found.get(usage.model_name, ModelUsage(model_name=usage.model_name))
        found[usage.model_name] = ModelUsage(
            model_name=usage.model_name,
            invocation_count=before.invocation_count + usage.invocation_count,
            prompt_tokens=before.prompt_tokens + usage.prompt_tokens,
            completion_tokens=before.completion_tokens + usage.completion_tokens,
            total_tokens=before.total_tokens + usage.total_tokens,
            cached_tokens=before.cached_tokens + usage.cached_tokens,
        )
    return [found[model] for model in sorted(found)]
