"""A/B runs: the answers of two runs of one eval beside each other, judged blind by a model, by people, or by both."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from shared.schemas.evals import EvalError, ModelUsage, Name, RunStatus, SampleMessage
from shared.schemas.graders import Messages, ModelName, SamplingParams
from shared.schemas.jobs import Metadata

Side: TypeAlias = Literal["a", "b"]
Choice: TypeAlias = Literal["first", "second", "tie"]
VoteChoice: TypeAlias = Literal["first", "second", "tie", "neither"]
AbItemStatus: TypeAlias = Literal["a", "b", "tie", "unjudged", "error", "left_out"]
AbVerdict: TypeAlias = Literal["a_is_better", "b_is_better", "no_difference_shown"]
RunId: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128, description="A run of this eval.")]
Voter: TypeAlias = Annotated[
    str, Meta(min_length=1, max_length=128, description="Who votes, by a name or number of yours.")
]


class AbJudge(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that is shown both answers without their names, in either order."""

    model: ModelName
    input: (
        Annotated[
            Messages,
            Meta(
                description="What it is asked: templates over {{ item.… }}, {{ sample.first.… }} and "
                "{{ sample.second.… }}, where each answer has output_text, output_json, output_tools and choices. Left "
                "out, it is asked which answer is better."
            ),
        ]
        | None
    ) = None
    sampling_params: SamplingParams | None = None


class CreateAbRun(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/evals/{eval_id}/ab_runs."""

    run_a: RunId
    run_b: RunId
    judge: Annotated[AbJudge | None, Meta(description="Without one, people alone vote.")] = None
    seed: (
        Annotated[int, Meta(ge=0, le=2**63 - 1, description="Draws which answer stands first; random if left out.")]
        | None
    ) = None
    name: Name | None = None
    metadata: Metadata | None = None


class AbCounts(Struct, frozen=True, kw_only=True):
    """Rows by what the judge said; those that it has not come to are in `total` alone."""

    total: int = 0
    a: int = 0
    b: int = 0
    tie: int = 0
    unjudged: Annotated[int, Meta(description="Rows of an A/B run without a judge.")] = 0
    errored: Annotated[int, Meta(description="Rows on which the judge broke down.")] = 0
    left_out: Annotated[int, Meta(description="Rows that only one run has an answer to, or that differ.")] = 0


class AbRun(Struct, frozen=True, kw_only=True):
    """An A/B run as the API shows it."""

    id: str
    object: Literal["eval.ab_run"] = "eval.ab_run"
    eval_id: str
    status: RunStatus
    name: str
    run_a: str
    run_b: str
    judge: AbJudge | None
    seed: int
    created_at: int
    result_counts: AbCounts
    per_model_usage: Annotated[list[ModelUsage], Meta(description="What the judge was asked.")]
    metadata: dict[str, str] | None
    error: EvalError


class AbRunDeleted(Struct, frozen=True, kw_only=True):
    """Answer to the deletion of an A/B run."""

    object: Literal["eval.ab_run.deleted"] = "eval.ab_run.deleted"
    deleted: Literal[True] = True
    ab_run_id: str


class AbJudgement(Struct, frozen=True, kw_only=True):
    """What the judge said to one order of the answers; `choice` is null where it said nothing of use."""

    first: Annotated[Side, Meta(description="Whose answer stood first.")]
    choice: Choice | None
    error: EvalError = EvalError()

    @property
    def winner(self) -> Literal["a", "b", "tie"] | None:
        """Whose answer it chose."""
        if self.choice == "first":
            return self.first
        if self.choice == "second":
            return "b" if self.first == "a" else "a"
        return self.choice


InputStatus: TypeAlias = Literal["same", "differs", "shortened", "unknown"]
"""What the two answers of a row reply to."""


class AbItem(Struct, frozen=True, kw_only=True):
    """A row with both answers and what came of them."""

    id: str
    object: Literal["eval.ab_run.item"] = "eval.ab_run.item"
    ab_run_id: str
    eval_id: str
    created_at: int
    status: Annotated[
        AbItemStatus, Meta(description="Whose answer won: `a` or `b` where the judge chose it in both orders.")
    ]
    datasource_item_id: Annotated[int, Meta(description="The row's number, from 0.")]
    datasource_item: dict[str, Any]
    input: Annotated[
        list[SampleMessage], Meta(description="What both were asked; empty if that differs or is unknown.")
    ]
    input_status: Annotated[
        InputStatus,
        Meta(
            description="`same`: both were asked `input`. `differs`: other messages or tools. `shortened`: the same, "
            "whose parts or tool calls `input` leaves out. `unknown`: an answer was brought along by the row."
        ),
    ] = "same"
    a: list[SampleMessage]
    b: list[SampleMessage]
    judgements: list[AbJudgement] = []
    error: Annotated[EvalError, Meta(description="Why the row is left out.")] = EvalError()


class AbPair(Struct, frozen=True, kw_only=True):
    """Two answers, of which the reader is not told whose they are."""

    pair: Annotated[str, Meta(description="Goes with the vote.")]
    item: dict[str, Any]
    input: list[SampleMessage]
    first: list[SampleMessage]
    second: list[SampleMessage]


class AbNext(Struct, frozen=True, kw_only=True):
    """What a voter is to look at next."""

    object: Literal["eval.ab_run.next"] = "eval.ab_run.next"
    ab_run_id: str
    voter: str
    pair: Annotated[AbPair | None, Meta(description="Null when the voter has voted on every pair that there is.")]


class CreateAbVote(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/evals/{eval_id}/ab_runs/{ab_run_id}/votes."""

    pair: Annotated[str, Meta(min_length=1, max_length=1024, description="The pair's, as it was given.")]
    choice: Annotated[VoteChoice, Meta(description="`tie`: as good as each other; `neither`: none of them is good.")]


class AbVote(Struct, frozen=True, kw_only=True):
    """A vote as it was counted."""

    object: Literal["eval.ab_run.vote"] = "eval.ab_run.vote"
    ab_run_id: str
    voter: str
    choice: VoteChoice
    created_at: int


class AbFinding(Struct, frozen=True, kw_only=True):
    """Whose answers are better, over rows."""

    verdict: Annotated[AbVerdict, Meta(description="One is better only where p is below 0.05.")]
    rows: int
    a: Annotated[int, Meta(description="Rows that a won.")]
    b: int
    ties: int
    win_rate: Annotated[float | None, Meta(description="Share of a in the rows that are no ties; null without any.")]
    interval: Annotated[list[float] | None, Meta(description="Exact 95 % interval of the win rate.")]
    p_value: Annotated[float, Meta(description="How likely so uneven a split is if neither is better (two-sided).")]


class AbPosition(Struct, frozen=True, kw_only=True):
    """Whether the answer that stands first is preferred for standing there."""

    chose_first: Annotated[int, Meta(description="How often the first answer was chosen.")]
    chose_second: int
    leaning_first: Annotated[
        int, Meta(description="Rows (of people: votes) on which the first place had more than the second.")
    ]
    leaning_second: int
    p_value: Annotated[float, Meta(description="Binomial test of what leans: chance of so uneven a split (two-sided).")]


class AbJudged(Struct, frozen=True, kw_only=True):
    """What the judge came to."""

    finding: AbFinding
    position: AbPosition


class AbVoted(Struct, frozen=True, kw_only=True):
    """What people came to: a row goes to whom more of its votes chose."""

    votes: int
    voters: int
    neither: Annotated[int, Meta(description="Votes that neither answer is good; they count as ties.")]
    finding: AbFinding
    position: AbPosition


class AbAgreement(Struct, frozen=True, kw_only=True):
    """How far people's votes agree with the judge, over the votes on rows that it has judged."""

    votes: int
    agreed: Annotated[int, Meta(description="Votes for what the judge says: a, b or a tie.")]
    kappa: Annotated[
        float | None,
        Meta(description="Cohen's kappa: 1 is full agreement, 0 what chance gives; null if there is nothing to tell."),
    ]


class AbReport(Struct, frozen=True, kw_only=True):
    """Who won, as far as is known so far."""

    object: Literal["eval.ab_run.report"] = "eval.ab_run.report"
    eval_id: str
    ab_run_id: str
    run_a: str
    run_b: str
    judge: Annotated[AbJudged | None, Meta(description="Null where there is no judge.")]
    people: Annotated[AbVoted | None, Meta(description="Null where nobody has voted.")]
    agreement: Annotated[AbAgreement | None, Meta(description="Null unless both have spoken of the same rows.")]
