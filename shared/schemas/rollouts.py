"""Rollouts of a reinforcement job as the API shows them: answers that it tried, their rewards, and how they develop."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from shared.schemas.evals import RunStatus
from shared.schemas.graders import JudgeUsage, RunnableGrader

AlarmKind: TypeAlias = Literal["length", "repetition", "drift", "agreement"]


class RolloutAlarm(Struct, frozen=True, kw_only=True):
    """A sign that the model learns to please the grader rather than to answer well: worth a look at the answers."""

    kind: Annotated[
        AlarmKind,
        Meta(
            description="`length`: answers grow or shrink while the reward rises; `repetition`: they repeat themselves "
            "more; `drift`: one part of the grader rises while another falls; `agreement`: a part no longer agrees "
            "with the others."
        ),
    ]
    step: Annotated[int, Meta(description="The step at which it was first seen.")]
    message: str
    grader: Annotated[str | None, Meta(description="The part of the grader that it is about.")] = None
    before: Annotated[float, Meta(description="What the first steps had.")]
    now: Annotated[float, Meta(description="What the steps before the alarm had.")]


class Rollout(Struct, frozen=True, kw_only=True):
    """One answer that a job tried."""

    id: str
    object: Literal["fine_tuning.job.rollout"] = "fine_tuning.job.rollout"
    fine_tuning_job_id: str
    step: Annotated[
        int,
        Meta(description="The step that learnt from it; of the validation file, the step whose model has answered."),
    ]
    validation: bool
    line: Annotated[int, Meta(description="The prompt's line in its file, from 1.")]
    sample: Annotated[int, Meta(description="Which of the answers to the prompt it is, from 0.")]
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    item: Annotated[dict[str, Any], Meta(description="The line's other keys, which graders see.")]
    output_text: str
    output_tools: list[dict[str, Any]] | None
    finish_reason: str
    reward: Annotated[float | None, Meta(description="null where graders could not say anything.")]
    scores: Annotated[dict[str, float], Meta(description="By the name of the grader, those in a multi grader.")]
    errors: Annotated[list[str], Meta(description="What went wrong in grading, as graders' results name it.")]
    error_details: str
    prompt_tokens: int
    completion_tokens: int


class RolloutStep(Struct, frozen=True, kw_only=True):
    """What the answers of a step were like; means are over those that have a reward."""

    step: int
    validation: bool
    groups: Annotated[int, Meta(description="Prompts.")]
    samples: Annotated[int, Meta(description="Answers to all of them.")]
    reward_mean: float
    reward_std: float
    standard_error: Annotated[float, Meta(description="Of the mean reward, over prompts.")]
    scores: Annotated[dict[str, float], Meta(description="Mean by grader.")]
    agreement: Annotated[
        dict[str, float],
        Meta(description="Of a multi grader: how each part's scores correlate with the mean of the others'."),
    ]
    zero_variance_share: Annotated[
        float, Meta(description="Share of prompts all of whose answers have one reward, which teach nothing.")
    ]
    completion_tokens_mean: float
    prompt_tokens_mean: float
    truncated_share: Annotated[float, Meta(description="Share of answers that were cut off.")]
    repeated_share: Annotated[float, Meta(description="Share of 4-grams that stood in the same answer before.")]
    ungraded: Annotated[int, Meta(description="Answers without a reward.")]
    errors: Annotated[dict[str, int], Meta(description="How often graders failed, by what went wrong.")]
    usage: Annotated[dict[str, JudgeUsage], Meta(description="Tokens of judges by model.")]
    sampling_s: float
    grading_s: float


class RolloutSummary(Struct, frozen=True, kw_only=True):
    """A job's rollouts step by step, and what in them is worth a look."""

    object: Literal["fine_tuning.job.rollout_summary"] = "fine_tuning.job.rollout_summary"
    fine_tuning_job_id: str
    steps: Annotated[list[RolloutStep], Meta(description="In order; the validation file's come after their step's.")]
    alarms: Annotated[list[RolloutAlarm], Meta(description="Signs of reward hacking, oldest first.")]


class RegradeRollouts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/fine_tuning/jobs/{job_id}/rollouts/regrade."""

    grader: Annotated[RunnableGrader, Meta(description="What is to grade the job's answers now.")]
    validation: Annotated[
        bool, Meta(description="Answers to the validation file, in place of the training file's.")
    ] = False
    first_step: Annotated[int, Meta(ge=0, le=999_999_999, description="None before it.")] | None = None
    last_step: Annotated[int, Meta(ge=0, le=999_999_999, description="None after it.")] | None = None
    sample: (
        Annotated[
            int,
            Meta(ge=1, le=50_000, description="So many prompts with all their answers, drawn by chance; else all."),
        ]
        | None
    ) = None


class RegradedStep(Struct, frozen=True, kw_only=True):
    """A step's answers with both rewards."""

    step: int
    answers: Annotated[int, Meta(description="Those that have both rewards, over which everything here is.")]
    reward_mean: float
    original_reward_mean: float
    correlation: Annotated[float | None, Meta(description="Of both rewards; null where one of them does not vary.")]


class RolloutRegrade(Struct, frozen=True, kw_only=True):
    """A job's answers as another grader sees them, beside what they were rewarded with; of those graded so far."""

    object: Literal["fine_tuning.job.rollout_regrade"] = "fine_tuning.job.rollout_regrade"
    fine_tuning_job_id: str
    eval_id: Annotated[str, Meta(description="The eval that does it: its runs are listed, cancelled and deleted so.")]
    eval_run_id: str
    status: RunStatus
    grader: RunnableGrader
    rollouts: Annotated[int, Meta(description="Answers to grade; 0 until the run has begun.")]
    graded: int
    ungraded: Annotated[int, Meta(description="Of those, answers that the grader could not say anything of.")]
    correlation: Annotated[float | None, Meta(description="Of both rewards over all answers.")]
    groups: Annotated[int, Meta(description="Prompts of a step, with at least two answers that have both rewards.")]
    groups_with_other_best: Annotated[
        int, Meta(description="Of those, where none of the answers that were best would be best now.")
    ]
    steps: list[RegradedStep]
