"""Batches: what a client posts and what it gets back."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from shared.schemas.files import ExpiresAfter
from shared.schemas.jobs import Metadata

BatchEndpoint: TypeAlias = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]


class CreateBatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/batches."""

    input_file_id: Annotated[
        str, Meta(min_length=1, max_length=128, description="Id of an uploaded file with purpose batch.")
    ]
    endpoint: Annotated[BatchEndpoint, Meta(description="The endpoint that every line of the file names as its url.")]
    completion_window: Annotated[Literal["24h"], Meta(description="Requests not answered by then expire.")]
    metadata: Metadata | None = None
    output_expires_after: Annotated[
        ExpiresAfter | None, Meta(description="How long output and error file are kept; for ever without it.")
    ] = None


class BatchError(Struct, frozen=True, kw_only=True):
    """What is wrong with the input file, or with a line of it."""

    code: str
    message: str
    param: str | None = None
    line: Annotated[int | None, Meta(description="Number of the line, from 1.")] = None


class BatchErrors(Struct, frozen=True, kw_only=True):
    """Why a batch failed."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class BatchRequestCounts(Struct, frozen=True, kw_only=True):
    """How far a batch has come; what has expired or was cancelled counts as failed."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputTokensDetails(Struct, frozen=True, kw_only=True):
    """Of the input tokens, those that were in the prefix cache."""

    cached_tokens: int = 0


class OutputTokensDetails(Struct, frozen=True, kw_only=True):
    """Of the output tokens, those of a reasoning."""

    reasoning_tokens: int = 0


class BatchUsage(Struct, frozen=True, kw_only=True):
    """Tokens of all answered requests together."""

    input_tokens: int = 0
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int = 0
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int = 0

    def __add__(self, other: BatchUsage) -> BatchUsage:
        cached = self.input_tokens_details.cached_tokens + other.input_tokens_details.cached_tokens
        reasoning = self.output_tokens_details.reasoning_tokens + other.output_tokens_details.reasoning_tokens
        return BatchUsage(
            input_tokens=self.input_tokens + other.input_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=cached),
            output_tokens=self.output_tokens + other.output_tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=reasoning),
            total_tokens=self.total_tokens + other.total_tokens,
        )


BatchStatus: TypeAlias = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]


class Batch(Struct, frozen=True, kw_only=True):
    """A batch as the API shows it. What is not known or has not happened yet is null, as OpenAI writes it."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: Annotated[str | None, Meta(description="The model of its requests, if they all name the same one.")] = None
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: Annotated[str | None, Meta(description="Answers; null if there are none.")] = None
    error_file_id: Annotated[str | None, Meta(description="Requests that failed; null if there are none.")] = None
    created_at: Annotated[int, Meta(description="Unix time in seconds, as all the others.")]
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: BatchRequestCounts
    usage: BatchUsage
    metadata: Metadata | None = None
