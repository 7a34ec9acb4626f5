"""Sweeps: one request with lists of hyperparameters, several jobs, one best model."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from shared.schemas.costs import JobCost
from shared.schemas.evals import CompletionsRun, Verdict
from shared.schemas.jobs import Metadata

MAX_RUNS = 64

SweepStatus: TypeAlias = Literal["queued", "in_progress", "completed", "failed", "canceled"]
MetricName: TypeAlias = Literal["full_valid_loss", "valid_reward", "eval_pass_rate"]
Keep: TypeAlias = Literal["all", "best"]


class ModelEval(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An eval that each model is put through: a run's data source without `model`."""

    eval_id: Annotated[str, Meta(min_length=1, max_length=128)]
    data_source: CompletionsRun


class RowCounts(Struct, frozen=True, kw_only=True):
    """Rows of a model's run of the eval."""

    passed: int
    graded: Annotated[int, Meta(description="Rows that passed or failed.")]
    errored: Annotated[int, Meta(description="Rows that could not be graded.")]

    @property
    def pass_rate(self) -> float | None:
        """Passed of graded, from 0 to 1; None where no row was graded."""
        return self.passed / self.graded if self.graded else None


class SweepOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the lists become runs, and what becomes of their models."""

    n_runs: (
        Annotated[
            int,
            Meta(ge=1, le=MAX_RUNS, description="So many picks from the grid, at random; null is the whole grid."),
        ]
        | None
    ) = None
    seed: Annotated[int, Meta(ge=0, le=2147483647, description="Of the picks; the same one picks the same.")] | None = (
        None
    )
    keep: Annotated[
        Keep, Meta(description="`best` deletes the models of the runs that are ranked after the best one.")
    ] = "all"
    eval: Annotated[ModelEval, Meta(description="What ranks the models, in place of the validation file.")] | None = (
        None
    )


class CreateSweep(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/fine_tuning/sweeps: a job's, in which hyperparameters, options and the seed may be lists."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    training_file: Annotated[str, Meta(min_length=1, max_length=128)]
    validation_file: (
        Annotated[str, Meta(min_length=1, max_length=128, description="Needed unless `sweep.eval` is given.")] | None
    ) = None
    suffix: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    seed: int | list[int] | None = None
    method: Annotated[
        dict[str, Any], Meta(description="As a job has it; each hyperparameter may be a list of values.")
    ] = {}
    hyperparameters: Annotated[dict[str, Any], Meta(description="Deprecated; lists here count as well.")] = {}
    selftune: Annotated[dict[str, Any], Meta(description="As a job has it; each option may be a list of values.")] = {}
    metadata: Metadata | None = None
    integrations: list[dict[str, Any]] | None = None
    sweep: SweepOptions = SweepOptions()


class SweepError(Struct, frozen=True, kw_only=True):
    """Why a sweep, or one run of it, has failed."""

    code: str
    message: str


class SweepRun(Struct, frozen=True, kw_only=True):
    """One job of a sweep."""

    job_id: str
    parameters: Annotated[dict[str, Any], Meta(description="The values that it has of the lists.")]
    status: Annotated[
        str, Meta(description="The job's; `waiting` where there is none, `refused` where none could be made.")
    ]
    model: Annotated[str | None, Meta(description="The fine-tuned model.")]
    model_kept: Annotated[bool, Meta(description="False once the model was deleted because another one is better.")]
    eval_run_id: str | None
    value: Annotated[float | None, Meta(description="What it is ranked by.")]
    rows: Annotated[RowCounts | None, Meta(description="What the value is made of; null without an eval.")]
    rank: Annotated[int | None, Meta(description="1 is the best; equal values share a rank.")]
    error: SweepError | None


class SweepMetric(Struct, frozen=True, kw_only=True):
    """What runs are ranked by."""

    name: MetricName
    better: Literal["lower", "higher"]


class SweepBest(Struct, frozen=True, kw_only=True):
    """The run with the best value."""

    job_id: str
    model: str
    value: float
    lead: Annotated[
        Verdict | None,
        Meta(
            description="The best model against the second in the eval: `better` only where chance is no explanation. "
            "Null without an eval."
        ),
    ]


class Sweep(Struct, frozen=True, kw_only=True):
    """A sweep as the API shows it."""

    id: str
    object: Literal["fine_tuning.sweep"] = "fine_tuning.sweep"
    created_at: int
    finished_at: int | None
    status: SweepStatus
    error: SweepError | None
    model: str
    training_file: str
    validation_file: str | None
    parameters: Annotated[dict[str, list[Any]], Meta(description="The lists, by name.")]
    grid_size: int
    seed: Annotated[int | None, Meta(description="Of the picks; null where the whole grid is run.")]
    metric: SweepMetric
    keep: Keep
    eval_id: str | None
    runs: list[SweepRun]
    best: SweepBest | None
    cost: JobCost
    metadata: dict[str, str] | None


class SweepDeleted(Struct, frozen=True, kw_only=True):
    """Answer to the deletion of a sweep."""

    id: str
    object: Literal["fine_tuning.sweep.deleted"] = "fine_tuning.sweep.deleted"
    deleted: Literal[True] = True
