"""What is watched of an alias's live traffic, and what follows."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct, field

from shared.schemas.graders import Grader
from shared.schemas.methods import SupervisedHyperparameters

MonitorAction: TypeAlias = Literal["webhook", "propose_retraining", "retrain"]


class Baseline(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What later traffic is compared with."""

    training: Annotated[
        bool, Meta(description="The training file of the model's job, for inputs; where there is one of chats.")
    ] = True
    first_s: Annotated[
        int, Meta(ge=1, le=90 * 86_400, description="Seconds from the alias's move, or from when it is watched.")
    ] = 7 * 86_400


class DriftThresholds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From where on a difference is an alarm; besides, chance must be ruled out."""

    max_stability_index: Annotated[
        float, Meta(ge=0, le=10, description="Population stability index of lengths, languages, character classes.")
    ] = 0.25
    max_word_distance: Annotated[
        float, Meta(ge=0, le=1, description="Jensen-Shannon distance of word frequencies.")
    ] = 0.1
    max_score_drop: Annotated[float, Meta(ge=0, description="Fall of a grader's mean score.")] = 0.05
    min_samples: Annotated[int, Meta(ge=10, le=1000, description="Answers in a window before it is compared.")] = 50
    false_alarms: Annotated[
        float, Meta(gt=0, le=0.1, description="Share of the windows without drift that may be alarms all the same.")
    ] = 0.01


class RetrainingBudget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What retraining may take in 30 days, of all proposals for this alias together."""

    jobs: Annotated[int, Meta(ge=1, le=1000)] | None = None
    tokens: Annotated[int, Meta(ge=1, le=2**53 - 1, description="Trained tokens, estimated before.")] | None = None


class Recipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the alias's model is trained again: as its job was, on that job's rows and on collected answers."""

    min_score: Annotated[
        float | None, Meta(description="Least score that every grader gave to an answer that is trained on.")
    ] = None
    max_answers: Annotated[int, Meta(ge=1, le=10_000, description="Most collected answers, the newest.")] = 1000
    keep_training_file: Annotated[bool, Meta(description="Train on the rows of the model's own job, too.")] = True
    hyperparameters: Annotated[
        SupervisedHyperparameters | None, Meta(description="Else those of the model's own job.")
    ] = None


class Monitor(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A share of an alias's chat answers is kept, graded and compared with what was before."""

    sample_rate: Annotated[float, Meta(gt=0, le=1, description="Share of the answers, drawn at random.")]
    max_samples_per_hour: Annotated[int, Meta(ge=1, le=3600)] = 120
    graders: Annotated[
        list[Grader], Meta(max_length=8, description="Scores of answers; `item.messages`, `sample.…`.")
    ] = []
    baseline: Baseline = Baseline()
    window_s: Annotated[int, Meta(ge=1, le=30 * 86_400, description="Seconds that are compared at a time.")] = 86_400
    thresholds: DriftThresholds = DriftThresholds()
    actions: Annotated[list[MonitorAction], Meta(max_length=3, description="What an alarm does.")] = field(
        default_factory=lambda: list[MonitorAction](("webhook",))
    )
    recipe: Recipe = Recipe()
    budget: Annotated[RetrainingBudget | None, Meta(description="Limits retraining; `retrain` needs one.")] = None
    retrain_without_approval: Annotated[
        bool, Meta(description="Must be true for the action `retrain`: nobody looks at the proposal first.")
    ] = False
