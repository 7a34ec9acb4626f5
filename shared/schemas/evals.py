"""Evals, their runs and what came of each row, in OpenAI's shapes; and the comparison of two runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from shared.schemas.graders import Grader
from shared.schemas.jobs import Metadata

MAX_CRITERIA = 32
MAX_ROWS = 50_000

Name: TypeAlias = Annotated[str, Meta(max_length=256, description="A name of yours.")]
RunStatus: TypeAlias = Literal["queued", "in_progress", "completed", "canceled", "failed"]
ItemStatus: TypeAlias = Literal["pass", "fail", "error"]


class CustomDataSource(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="custom"):
    """Rows that every run brings along."""

    item_schema: Annotated[dict[str, Any], Meta(description="JSON schema of a row's `item`.")]
    include_sample_schema: Annotated[bool, Meta(description="Whether criteria speak of `sample`.")] = False


class LogsDataSource(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="logs"):
    """Chat completions that this project has stored."""

    metadata: Annotated[Metadata | None, Meta(description="Only those that carry these pairs.")] = None


class StoredCompletionsDataSource(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="stored_completions"
):
    """The former name of `logs`."""

    metadata: Annotated[Metadata | None, Meta(description="Only those that carry these pairs.")] = None


DataSourceConfig: TypeAlias = CustomDataSource | LogsDataSource | StoredCompletionsDataSource


class CreateEval(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/evals."""

    data_source_config: DataSourceConfig
    testing_criteria: Annotated[
        list[Grader], Meta(min_length=1, max_length=MAX_CRITERIA, description="Graders; a row passes if all say so.")
    ]
    name: Name | None = None
    metadata: Metadata | None = None


class UpdateEval(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/evals/{eval_id}; what is left out stays."""

    name: Name | UnsetType = UNSET
    metadata: Annotated[Metadata | None, Meta(description="Replaces what was there.")] | UnsetType = UNSET


class ShownDataSource(Struct, frozen=True, kw_only=True):
    """What rows are made of, as the API shows it."""

    type: Literal["custom", "logs", "stored_completions"]
    schema: Annotated[dict[str, Any], Meta(description="JSON schema of a row: its `item`, and its `sample`.")]
    metadata: dict[str, str] | UnsetType = UNSET


class Eval(Struct, frozen=True, kw_only=True):
    """An eval as the API shows it."""

    id: str
    object: Literal["eval"] = "eval"
    name: str
    data_source_config: ShownDataSource
    testing_criteria: list[Grader]
    created_at: int
    metadata: dict[str, str] | None


class EvalDeleted(Struct, frozen=True, kw_only=True):
    """Answer to the deletion of an eval."""

    object: Literal["eval.deleted"] = "eval.deleted"
    deleted: Literal[True] = True
    eval_id: str


class EvalRow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A row of a run's data; in a file, one a line."""

    item: Annotated[dict[str, Any], Meta(description="What templates call `item`.")]
    sample: Annotated[
        dict[str, Any] | None,
        Meta(description="An answer made elsewhere: `output_text`, `output_tools` or `choices`, or others of yours."),
    ] = None


class EvalFileContent(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="file_content"
):
    """Rows in the request itself."""

    content: Annotated[list[EvalRow], Meta(min_length=1, max_length=MAX_ROWS)]


class EvalFileId(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="file_id"):
    """Rows of an uploaded file."""

    id: Annotated[str, Meta(min_length=1, max_length=128)]


class EvalStoredCompletions(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="stored_completions"
):
    """The project's stored chat completions, newest first, as they are when the run is created."""

    metadata: Annotated[Metadata | None, Meta(description="Only those that carry these pairs.")] = None
    model: Annotated[str | None, Meta(description="Only those that this model has answered.")] = None
    created_after: Annotated[int, Meta(ge=0, description="Unix time in seconds; none before it.")] | None = None
    created_before: Annotated[int, Meta(ge=0, description="Unix time in seconds; none after it.")] | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_ROWS, description="So many at most.")] | None = None


class TemplatePart(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a message; texts are all that this server's templates hold."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class TemplateMessage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A message whose text may refer to the row, as in `{{ item.question }}`."""

    role: Annotated[str, Meta(min_length=1, max_length=64)]
    content: str | TemplatePart | Annotated[list[TemplatePart], Meta(min_length=1, max_length=64)]
    type: Literal["message"] = "message"


class MessageTemplate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="template"):
    """Messages that are made for each row."""

    template: Annotated[list[TemplateMessage], Meta(min_length=1, max_length=256)]


class ItemReference(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="item_reference"
):
    """Messages that each row holds itself."""

    item_reference: Annotated[str, Meta(min_length=1, max_length=512, description="Such as `item.input`.")]


InputMessages: TypeAlias = MessageTemplate | ItemReference


class EvalSampling(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the model is asked."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    reasoning_effort: Annotated[str, Meta(max_length=32)] | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None


class JsonlRun(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="jsonl"):
    """Rows are graded as they are."""

    source: EvalFileContent | EvalFileId


class CompletionsRun(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="completions"
):
    """A model answers each row; without `model` and `input_messages`, stored completions are graded as they are."""

    source: EvalFileContent | EvalFileId | EvalStoredCompletions
    input_messages: InputMessages | None = None
    model: Annotated[str, Meta(min_length=1, max_length=512)] | None = None
    sampling_params: EvalSampling | None = None


RunSource: TypeAlias = JsonlRun | CompletionsRun


class CreateEvalRun(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/evals/{eval_id}/runs."""

    data_source: RunSource
    name: Name | None = None
    metadata: Metadata | None = None


class ResultCounts(Struct, frozen=True, kw_only=True):
    """Rows of a run; those that have no result yet are in `total` alone."""

    total: int = 0
    errored: int = 0
    failed: int = 0
    passed: int = 0


class ModelUsage(Struct, frozen=True, kw_only=True):
    """What a model was asked in a run, as the one that answers or as a judge."""

    model_name: str
    invocation_count: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0


class CriterionResult(Struct, frozen=True, kw_only=True):
    """How many rows passed a criterion; a row on which it broke down is in neither."""

    testing_criteria: str
    passed: int = 0
    failed: int = 0


class EvalError(Struct, frozen=True, kw_only=True):
    """Why something has failed; both are empty if nothing has."""

    code: str = ""
    message: str = ""


class EvalRun(Struct, frozen=True, kw_only=True):
    """A run as the API shows it."""

    id: str
    object: Literal["eval.run"] = "eval.run"
    eval_id: str
    status: RunStatus
    model: str
    name: str
    created_at: int
    report_url: Annotated[str, Meta(description="Where its rows are listed.")]
    result_counts: ResultCounts
    per_model_usage: list[ModelUsage]
    per_testing_criteria_results: list[CriterionResult]
    data_source: Annotated[Raw, Meta(description="As it was posted.", extra_json_schema={"type": "object"})]
    metadata: dict[str, str] | None
    error: EvalError


class EvalRunDeleted(Struct, frozen=True, kw_only=True):
    """Answer to the deletion of a run."""

    object: Literal["eval.run.deleted"] = "eval.run.deleted"
    deleted: Literal[True] = True
    run_id: str


class SampleMessage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message of a conversation, as text."""

    role: str
    content: str
    tool_calls: list[dict[str, Any]] | UnsetType = UNSET


class SampleUsage(Struct, frozen=True, kw_only=True):
    """Tokens of one answer."""

    total_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0


class Sample(Struct, frozen=True, kw_only=True):
    """What a model was asked and has answered, or would have. `max_completion_tokens` of 0 is no limit."""

    input: list[SampleMessage] = []
    output: list[SampleMessage] = []
    finish_reason: str = ""
    model: str = ""
    usage: SampleUsage = SampleUsage()
    error: EvalError = EvalError()
    temperature: float = 1.0
    max_completion_tokens: int = 0
    top_p: float = 1.0
    seed: int = 42


class ItemResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a criterion says of a row. `error` tells why it could not say anything; the score is 0 then."""

    name: str
    type: str
    score: float
    passed: bool
    error: EvalError | UnsetType = UNSET
    ungraded: Annotated[
        bool | UnsetType,
        Meta(description="True where a judge or the cage was away, so that nothing is said of the row's answer."),
    ] = UNSET


class OutputItem(Struct, frozen=True, kw_only=True):
    """A row with its result."""

    id: str
    object: Literal["eval.run.output_item"] = "eval.run.output_item"
    run_id: str
    eval_id: str
    created_at: int
    status: ItemStatus
    datasource_item_id: Annotated[int, Meta(description="The row's number, from 0.")]
    datasource_item: dict[str, Any]
    results: list[ItemResult]
    sample: Sample


Verdict: TypeAlias = Literal["better", "worse", "no_difference_shown"]


class PassComparison(Struct, frozen=True, kw_only=True):
    """Passing of the same rows in both runs; McNemar's exact test."""

    passed: Annotated[int, Meta(description="Rows that passed in this run.")]
    passed_in_other: int
    only_here: Annotated[int, Meta(description="Rows that passed in this run and failed in the other.")]
    only_in_other: int
    p_value: Annotated[float, Meta(description="How likely so uneven a split is if neither run is better (two-sided).")]


class ScoreComparison(Struct, frozen=True, kw_only=True):
    """Scores of the same rows in both runs; paired bootstrap, and Wilcoxon's test where few differ."""

    mean: float
    mean_in_other: float
    difference: Annotated[float, Meta(description="Mean of this run's score less the other's, over the rows.")]
    interval: Annotated[list[float], Meta(description="95 % interval of the difference: lower and upper end.")]
    p_value: Annotated[
        float | None,
        Meta(description="Chance of ranks so uneven where neither run is better; null if more than 50 rows differ."),
    ]


class CriterionComparison(Struct, frozen=True, kw_only=True):
    """One criterion in both runs."""

    testing_criteria: str
    verdict: Annotated[
        Verdict, Meta(description="`better` or `worse` only if the interval and the p values all say so.")
    ]
    passing: PassComparison
    scores: ScoreComparison


class EvalRunComparison(Struct, frozen=True, kw_only=True):
    """A run beside another one of its eval."""

    object: Literal["eval.run.comparison"] = "eval.run.comparison"
    eval_id: str
    run_id: str
    against: str
    verdict: Annotated[Verdict, Meta(description="Of the rows that pass every criterion; p below 0.05.")]
    rows: Annotated[int, Meta(description="Rows that both runs have a result for; the others say nothing.")]
    rows_left_out: Annotated[int, Meta(description="Rows that are in one run alone, differ, or errored in either.")]
    passing: PassComparison
    per_testing_criteria: list[CriterionComparison]
