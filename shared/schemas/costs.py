"""What training and answering cost: of a job, beforehand, of a project, and against a model elsewhere."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

Currency: TypeAlias = Annotated[str, Meta(description="Of the setting `currency`.")]


class JobCost(Struct, frozen=True, kw_only=True):
    """What a job has taken of its devices, every attempt included."""

    device_seconds: Annotated[
        float,
        Meta(description="Seconds of devices; a job that shares one with n others counts its part of them."),
    ]
    price: Annotated[float | None, Meta(description="At the hour's price when it last began; null: none was set.")] = (
        None
    )
    currency: str | None = None


class JobEstimate(Struct, frozen=True, kw_only=True):
    """What a job is expected to take. What this server cannot know yet is null, and `remarks` say why."""

    object: Literal["fine_tuning.job.estimate"] = "fine_tuning.job.estimate"
    model: Annotated[str, Meta(description="The base that would be trained on.")]
    method: str
    examples: Annotated[int, Meta(description="Rows of the training file.")]
    n_epochs: int
    batch_size: int
    steps: int
    tokens: Annotated[int, Meta(description="Tokens that training reads, prompts included, over all epochs.")]
    tokens_source: Annotated[
        Literal["tokenised", "measured", "assumed"],
        Meta(
            description="`tokenised`: the file's own count; `measured`: as many for each byte as the files of earlier "
            "jobs on this base had; `assumed`: one for four bytes."
        ),
    ]
    tokens_per_device_second: Annotated[
        float | None, Meta(description="Of the earlier jobs like this on the base, everything from start to end.")
    ]
    device_seconds: float | None
    measured_jobs: Annotated[int, Meta(description="How many earlier jobs the speed is from.")]
    memory_bytes: Annotated[int | None, Meta(description="What the last job like this was expected to need.")]
    price: float | None
    currency: Currency
    remarks: list[str]


GroupBy: TypeAlias = Literal["project", "model", "day"]


class CostGroup(Struct, frozen=True, kw_only=True):
    """Usage of a project, a model or a day. A price is null where the settings have none for a part of it."""

    object: Literal["usage.cost"] = "usage.cost"
    group: Annotated[str, Meta(description="Id of the project, name of the model, or the date.")]
    requests: Annotated[int, Meta(description="Prompts that were answered; a request may have several.")] = 0
    input_tokens: int = 0
    cached_tokens: Annotated[int, Meta(description="Of the input's those that the prefix cache had.")] = 0
    output_tokens: int = 0
    device_seconds: Annotated[float, Meta(description="Of training.")] = 0.0
    serving_price: float | None = 0.0
    training_price: float | None = 0.0
    price: Annotated[float | None, Meta(description="Both together.")] = 0.0


class Costs(Struct, frozen=True, kw_only=True):
    """What was used between two days, and its price at today's prices."""

    object: Literal["list"] = "list"
    group_by: GroupBy
    start: Annotated[str, Meta(description="First day, UTC.")]
    end: Annotated[str, Meta(description="Last day, UTC.")]
    currency: Currency
    data: list[CostGroup]
    remarks: list[str]


class MeanRequest(Struct, frozen=True, kw_only=True):
    """Tokens of one request to the fine-tuned model, on average."""

    input_tokens: float
    cached_tokens: float
    output_tokens: float


class BreakEven(Struct, frozen=True, kw_only=True):
    """After how many requests a job's training is paid back by what each saves against a hosted model."""

    object: Literal["fine_tuning.job.break_even"] = "fine_tuning.job.break_even"
    job_id: str
    model: str
    against: str
    currency: Currency
    training_price: float
    measured_requests: Annotated[int, Meta(description="Requests to the model that the means are of.")]
    request: MeanRequest
    prompt_tokens_saved: Annotated[
        int, Meta(description="Tokens that the hosted model's prompt would have more, as given.")
    ]
    price_per_request: float
    hosted_price_per_request: float
    saved_per_request: float
    requests_to_break_even: Annotated[
        int | None, Meta(description="Null where a request saves nothing: it is never paid back.")
    ]
    requests_left: Annotated[int | None, Meta(description="The same less those that were made already; 0 if paid.")]
