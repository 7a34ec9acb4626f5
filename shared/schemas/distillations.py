"""Distillations: a teacher's answers made into a data set, a student trained on it, and the two compared."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from shared.schemas.evals import (
    MAX_CRITERIA,
    MAX_ROWS,
    CriterionResult,
    EvalFileContent,
    EvalFileId,
    EvalRunComparison,
    EvalSampling,
    InputMessages,
    ModelUsage,
    Name,
    ResultCounts,
    RunStatus,
)
from shared.schemas.graders import Grader, ModelName
from shared.schemas.jobs import Metadata
from shared.schemas.methods import SupervisedHyperparameters
from shared.schemas.options import ShownOptions

DistillationStatus: TypeAlias = Literal["queued", "in_progress", "completed", "failed", "canceled"]
StageName: TypeAlias = Literal["collecting", "grading", "selecting", "training", "evaluating"]
StageStatus: TypeAlias = Literal["pending", "in_progress", "completed", "skipped", "failed", "canceled"]
RunRole: TypeAlias = Literal["candidates", "teacher", "base", "student"]


class StoredSource(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="stored_completions"
):
    """The project's stored chat completions, newest first: their answers are the teacher's."""

    metadata: Annotated[Metadata | None, Meta(description="Only those that carry these pairs.")] = None
    model: Annotated[str, Meta(max_length=512, description="Only those that this model has answered.")] | None = None
    created_after: Annotated[int, Meta(ge=0, description="Unix time in seconds; none before it.")] | None = None
    created_before: Annotated[int, Meta(ge=0, description="Unix time in seconds; none after it.")] | None = None


class PromptsSource(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="prompts"):
    """Prompts that the teacher has yet to answer."""

    prompts: Annotated[
        EvalFileContent | EvalFileId, Meta(description="Rows as an eval has them: `item`, one a prompt.")
    ]
    teacher: ModelName
    input_messages: Annotated[
        InputMessages | None, Meta(description="What the teacher is asked; `item.input` where it is left out.")
    ] = None
    sampling_params: EvalSampling | None = None


DistillationSource: TypeAlias = StoredSource | PromptsSource


class DistillationFilter(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which of the teacher's answers become rows of the data set."""

    minimum_scores: Annotated[
        dict[str, float],
        Meta(max_length=MAX_CRITERIA, description="Least score by the name of a grader; answers below are dropped."),
    ] = {}
    duplicates: Annotated[bool, Meta(description="Keep rows whose prompt and answer were there before.")] = False
    near_duplicates: (
        Annotated[
            float,
            Meta(
                ge=0.5,
                le=1,
                description="Drop a row whose words, in threes, are alike by this much (Jaccard) to a newer one's.",
            ),
        ]
        | None
    ) = None
    max_rows: Annotated[int, Meta(ge=1, le=MAX_ROWS, description="Most rows, newest first.")] | None = None


class Student(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the student is trained: the fields of a fine-tuning job."""

    model: Annotated[
        str,
        Meta(min_length=1, max_length=512, description="What training starts from: a base, an alias, an ft: model."),
    ]
    suffix: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2147483647)] | None = None
    hyperparameters: SupervisedHyperparameters = SupervisedHyperparameters()
    selftune: ShownOptions | None = None


class DistillationEvaluation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the student is compared: on rows that it was not trained on."""

    held_out: Annotated[float, Meta(gt=0, le=0.5, description="Share of the rows that is held out.")] = 0.1
    max_rows: Annotated[int, Meta(ge=1, le=MAX_ROWS, description="Most rows that are held out.")] = 1000
    sampling_params: Annotated[
        EvalSampling, Meta(description="How student and base are asked; temperature is 0 where it is left out.")
    ] = EvalSampling()


class CreateDistillation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/distillations."""

    source: DistillationSource
    student: Student
    graders: Annotated[
        list[Grader],
        Meta(
            min_length=1,
            max_length=MAX_CRITERIA,
            description="Testing criteria of the eval; the filter's scores are theirs, too.",
        ),
    ]
    filter: DistillationFilter = DistillationFilter()
    evaluation: DistillationEvaluation = DistillationEvaluation()
    name: Name | None = None
    metadata: Metadata | None = None


class ShownSource(Struct, frozen=True, kw_only=True):
    """Where the teacher's answers come from; prompts that were posted are shown by their number."""

    type: Literal["stored_completions", "prompts"]
    metadata: dict[str, str] | None = None
    model: str | None = None
    created_after: int | None = None
    created_before: int | None = None
    teacher: str | None = None
    file_id: str | None = None
    posted_prompts: int | None = None
    input_messages: InputMessages | None = None
    sampling_params: EvalSampling | None = None


class DistillationStage(Struct, frozen=True, kw_only=True):
    """A stage; times are Unix times in seconds."""

    name: StageName
    status: StageStatus
    started_at: int | None = None
    ended_at: int | None = None


class DistillationCounts(Struct, frozen=True, kw_only=True):
    """Rows: all that were found are dropped, for training or held out, once they are selected."""

    found: int = 0
    dropped: Annotated[dict[str, int], Meta(description="By reason.")] = {}
    training: int = 0
    held_out: int = 0


class DistillationFiles(Struct, frozen=True, kw_only=True):
    """Files that were made so far."""

    candidates: Annotated[str | None, Meta(description="Rows that were graded, or that the teacher was asked.")] = None
    training: str | None = None
    held_out: Annotated[str | None, Meta(description="Rows of the eval, with the teacher's answers.")] = None
    manifest: Annotated[str | None, Meta(description="What became of every row, one a line.")] = None


class DistillationRun(Struct, frozen=True, kw_only=True):
    """A run that has ended."""

    role: RunRole
    id: str
    status: RunStatus
    result_counts: ResultCounts
    per_testing_criteria_results: list[CriterionResult]
    per_model_usage: list[ModelUsage]


class DistillationComparisons(Struct, frozen=True, kw_only=True):
    """The student's run beside the others; null where they have no graded rows in common."""

    base: EvalRunComparison | None = None
    teacher: Annotated[
        EvalRunComparison | None,
        Meta(description="Null, too, where `minimum_scores` have chosen the answers that would be compared."),
    ] = None
    remark: Annotated[str | None, Meta(description="Why the teacher is not compared, where it is not.")] = None


class DistillationError(Struct, frozen=True, kw_only=True):
    """Why a distillation has failed."""

    code: str
    message: str


class Distillation(Struct, frozen=True, kw_only=True):
    """A distillation as the API shows it. What it makes are ordinary objects of the project under these ids."""

    id: str
    object: Literal["distillation"] = "distillation"
    name: str
    status: DistillationStatus
    created_at: int
    started_at: int | None
    ended_at: int | None
    error: DistillationError | None
    source: ShownSource
    filter: DistillationFilter
    graders: list[Grader]
    student: Student
    evaluation: DistillationEvaluation
    stages: list[DistillationStage]
    counts: DistillationCounts
    files: DistillationFiles
    eval_id: Annotated[str | None, Meta(description="Of the runs on the rows that are held out.")]
    candidates_eval_id: Annotated[str | None, Meta(description="Of the run that has candidates answered and graded.")]
    run_ids: Annotated[dict[str, str], Meta(description="Runs that were begun, by their role.")]
    runs: list[DistillationRun]
    job_id: str | None
    fine_tuned_model: str | None
    trained_tokens: int | None
    usage: Annotated[list[ModelUsage], Meta(description="Answers and judgements of all runs together, by model.")]
    comparisons: DistillationComparisons
    metadata: dict[str, str] | None


class DistillationDeleted(Struct, frozen=True, kw_only=True):
    """Answer to the deletion of a distillation."""

    id: str
    object: Literal["distillation.deleted"] = "distillation.deleted"
    deleted: Literal[True] = True
