"""Rollouts of a reinforcement job as the API shows them: answers that it tried, their rewards, and how they develop."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from shared.schemas.graders import JudgeUsage

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
