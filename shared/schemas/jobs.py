"""Fine-tuning jobs: what a client posts and what it gets back."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

from shared.schemas.integrations import JobIntegration, WandbIntegration
from shared.schemas.methods import Method, OwnMethod, SupervisedHyperparameters
from shared.schemas.options import ShownOptions, TrainingOptions

MetadataKey: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64)]
MetadataValue: TypeAlias = Annotated[str, Meta(max_length=512)]
Metadata: TypeAlias = Annotated[
    dict[MetadataKey, MetadataValue], Meta(max_length=16, description="Up to 16 pairs of your own.")
]


class CreateJob(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/fine_tuning/jobs."""

    model: Annotated[
        str,
        Meta(min_length=1, max_length=512, description="A base model, an alias of one, or an ft: model to go on from."),
    ]
    training_file: Annotated[
        str, Meta(min_length=1, max_length=128, description="Id of an uploaded file with purpose fine-tune.")
    ]
    validation_file: (
        Annotated[
            str, Meta(min_length=1, max_length=128, description="Id of a file that is evaluated, not trained on.")
        ]
        | None
    ) = None
    suffix: (
        Annotated[str, Meta(min_length=1, max_length=64, description="A name of yours in the model's name.")] | None
    ) = None
    seed: Annotated[int, Meta(ge=0, le=2147483647, description="Same seed and data, same model.")] | None = None
    method: Method | None = None
    hyperparameters: Annotated[
        SupervisedHyperparameters | None, Meta(description="Deprecated; use method.supervised.hyperparameters.")
    ] = None
    metadata: Metadata | None = None
    integrations: Annotated[list[WandbIntegration], Meta(max_length=5)] | None = None
    selftune: ShownOptions | None = None

    @property
    def own_method(self) -> OwnMethod | None:
        """The method that is asked for under `selftune`."""
        return None if self.selftune is None else self.selftune.method

    @property
    def options(self) -> TrainingOptions:
        """What is asked for under `selftune`; it may be what a job showed, findings of the server included."""
        if self.selftune is None:
            return TrainingOptions()
        return TrainingOptions(**{name: getattr(self.selftune, name) for name in TrainingOptions.__struct_fields__})


JobStatus: TypeAlias = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]


class JobError(Struct, frozen=True, kw_only=True):
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None


class Job(Struct, frozen=True, kw_only=True):
    """A fine-tuning job as the API shows it."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None = None
    estimated_finish: int | None = None
    model: str
    fine_tuned_model: str | None = None
    organization_id: str
    status: Annotated[
        JobStatus,
        Meta(description="`paused` is not in OpenAI's list; a setting shows such jobs as `queued`."),
    ]
    training_file: str
    validation_file: str | None = None
    result_files: list[str] = []
    trained_tokens: int | None = None
    hyperparameters: SupervisedHyperparameters
    method: Annotated[
        Method | UnsetType,
        Meta(description="Left out for methods that OpenAI does not have; they are in `selftune.method`."),
    ] = UNSET
    seed: int
    error: JobError | None = None
    integrations: list[JobIntegration] = []
    metadata: Metadata | None = None
    user_provided_suffix: str | None = None
    selftune: Annotated[ShownOptions, Meta(description="Options beyond OpenAI's, as far as they are known by now.")]
