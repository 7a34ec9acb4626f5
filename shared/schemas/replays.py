"""Base replay: the jobs of chosen models run again on another base, and what comes of it against each champion."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from shared.schemas.evals import PassComparison, Verdict
from shared.schemas.jobs import Metadata
from shared.schemas.sweeps import ModelEval, RowCounts

MAX_MODELS = 32

ReplayStatus: TypeAlias = Literal["queued", "in_progress", "completed", "failed", "canceled"]
ReplayModel: TypeAlias = Annotated[str, Meta(min_length=1, max_length=512)]


class CreateReplay(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/fine_tuning/replays."""

    base: Annotated[str, Meta(min_length=1, max_length=512, description="The base to train on: a registered one.")]
    models: Annotated[
        list[ReplayModel],
        Meta(min_length=1, max_length=MAX_MODELS, description="Fine-tuned models of the project, the champions."),
    ]
    eval: Annotated[ModelEval, Meta(description="What champion and challenger are compared by.")]
    suffix: (
        Annotated[
            str, Meta(min_length=1, max_length=64, description="In the new models' names; else what the old ones have.")
        ]
        | None
    ) = None
    metadata: Metadata | None = None


class ReplayError(Struct, frozen=True, kw_only=True):
    """Why a replay, or one row of it, has failed."""

    code: str
    message: str


class ReplayRow(Struct, frozen=True, kw_only=True):
    """A champion and its challenger."""

    model: Annotated[str, Meta(description="The champion.")]
    replayed_job_id: Annotated[str | None, Meta(description="The job that made it, and was run again.")]
    job_id: Annotated[str | None, Meta(description="The new job.")]
    status: Annotated[
        str,
        Meta(
            description="`waiting`, the new job's, `evaluating`, `compared` or `failed`; the job's where a replay ended"
            " before there was a comparison."
        ),
    ]
    challenger: Annotated[str | None, Meta(description="The new job's model.")]
    champion_run_id: str | None
    challenger_run_id: str | None
    champion_pass_rate: Annotated[float | None, Meta(description="Passed of graded rows.")]
    challenger_pass_rate: float | None
    champion_rows: RowCounts | None
    challenger_rows: RowCounts | None
    verdict: Annotated[
        Verdict | None,
        Meta(description="Of the challenger: `better` or `worse` only where chance is no explanation."),
    ]
    passing: PassComparison | None
    remarks: list[str]
    error: ReplayError | None


class Replay(Struct, frozen=True, kw_only=True):
    """A replay as the API shows it."""

    id: str
    object: Literal["fine_tuning.replay"] = "fine_tuning.replay"
    created_at: int
    finished_at: int | None
    status: ReplayStatus
    error: ReplayError | None
    base: str
    suffix: str | None
    eval_id: str
    rows: list[ReplayRow]
    metadata: dict[str, str] | None


class PromoteReplay(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/fine_tuning/replays/{id}/promote."""

    models: (
        Annotated[
            list[ReplayModel],
            Meta(
                min_length=1,
                max_length=MAX_MODELS,
                description="Champions to be replaced, unless the challenger is worse; left out, those whose "
                "challenger is better.",
            ),
        ]
        | None
    ) = None
    wait_warm: Annotated[bool, Meta(description="Move an alias only once a server has the model in memory.")] = True


class MovedAlias(Struct, frozen=True, kw_only=True):
    """An alias that pointed to a champion."""

    alias: str
    previous_model: str
    model: Annotated[str, Meta(description="What it points to now.")]
    revision: int | None
    error: Annotated[ReplayError | None, Meta(description="Why it was not moved.")]


class ReplayPromotion(Struct, frozen=True, kw_only=True):
    """What a promotion has done."""

    object: Literal["fine_tuning.replay.promotion"] = "fine_tuning.replay.promotion"
    replay_id: str
    data: list[MovedAlias]


class ReplayDeleted(Struct, frozen=True, kw_only=True):
    """Answer to the deletion of a replay."""

    id: str
    object: Literal["fine_tuning.replay.deleted"] = "fine_tuning.replay.deleted"
    deleted: Literal[True] = True
