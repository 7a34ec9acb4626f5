"""How an alias has been answering: what was sampled, compared with what was before."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Interval = Annotated[list[float], Meta(description="95 % interval: lower and upper end.")]


class ScoreMean(Struct, frozen=True, kw_only=True):
    """One grader's mean score."""

    grader: str
    samples: Annotated[int, Meta(description="Answers that it could grade.")]
    mean: float
    interval: Interval


class InputDrift(Struct, frozen=True, kw_only=True):
    """How far what was asked is from what was asked before."""

    measure: Literal["input_length", "input_language", "input_characters", "input_words"]
    against: Literal["training", "first_samples"]
    value: Annotated[float, Meta(description="Population stability index; of words, the Jensen-Shannon distance.")]
    threshold: float
    p_value: Annotated[float, Meta(description="How likely so much is where nothing has changed.")]
    alarm: Annotated[bool, Meta(description="Above the threshold, and not by chance.")]


class ScoreDrift(Struct, frozen=True, kw_only=True):
    """How a grader's mean score is beside that of the first samples."""

    grader: str
    samples: int
    mean: float
    interval: Interval
    mean_before: float
    difference: float
    difference_interval: Interval
    p_value: Annotated[float, Meta(description="How likely so low a mean is where nothing has changed.")]
    alarm: Annotated[bool, Meta(description="Lower by more than the threshold, and not by chance.")]


class QualityWindow(Struct, frozen=True, kw_only=True):
    """A stretch of time, compared with what was before."""

    id: str
    object: Literal["alias.quality_window"] = "alias.quality_window"
    model: str
    starts_at: float
    ends_at: float
    samples: int
    status: Annotated[
        Literal["compared", "too_few_samples", "no_baseline"],
        Meta(description="The last two: not enough answers in the window, or in everything that it is compared with."),
    ]
    inputs: list[InputDrift] = []
    scores: list[ScoreDrift] = []
    alarms: Annotated[list[str], Meta(description="What has drifted, in words.")] = []


class QualityBaseline(Struct, frozen=True, kw_only=True):
    """What windows are compared with."""

    training_samples: Annotated[int, Meta(description="Rows of the training file of the model's job.")]
    training_note: Annotated[str, Meta(description="Why there are none.")]
    first_samples: Annotated[int, Meta(description="Answers of the baseline's time.")]
    first_until: Annotated[float, Meta(description="Unix time at which that ends.")]
    scores: list[ScoreMean]


class AliasQuality(Struct, frozen=True, kw_only=True):
    """What an alias's monitor has seen."""

    object: Literal["alias.quality"] = "alias.quality"
    alias: str
    model: str
    due_samples: Annotated[int, Meta(description="Answers that are kept and not graded yet.")]
    baseline: QualityBaseline
    current: Annotated[list[ScoreMean], Meta(description="Of the answers since the last window.")]
    current_samples: int
    windows: Annotated[list[QualityWindow], Meta(description="Newest first, the last 50.")]
