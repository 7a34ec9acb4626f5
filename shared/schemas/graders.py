"""Graders in OpenAI's shapes: what turns an answer into a number, and what running one answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

Operation: TypeAlias = Literal["eq", "ne", "neq", "like", "ilike"]
Metric: TypeAlias = Literal[
    "cosine", "fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"
]

Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256, description="A name of yours.")]
Template: TypeAlias = Annotated[
    str,
    Meta(max_length=256_000, description="Text in which {{ item.… }} and {{ sample.… }} stand for what is graded."),
]
Threshold: TypeAlias = Annotated[float, Meta(description="Least score that passes.")]
Range: TypeAlias = Annotated[
    list[float], Meta(min_length=2, max_length=2, description="Least and greatest score; [0, 1] where it is left out.")
]
ModelName: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=512,
        description="A model of this server, or endpoint/model for one of the configured judge endpoints.",
    ),
]


class InputText(Struct, tag_field="type", tag="input_text", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A text in a message to a judge."""

    text: Template


class OutputText(Struct, tag_field="type", tag="output_text", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A text that a model has written, in a message to a judge."""

    text: Template


class InputImage(Struct, tag_field="type", tag="input_image", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A picture in a message to a judge, for judges that see."""

    image_url: Template
    detail: Annotated[str, Meta(max_length=16, description="high, low or auto.")] | UnsetType = UNSET


class AudioData(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sound, in base64."""

    data: str
    format: Literal["mp3", "wav"]


class InputAudio(Struct, tag_field="type", tag="input_audio", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sound in a message to a judge, for judges that hear."""

    input_audio: AudioData


Part: TypeAlias = InputText | OutputText | InputImage | InputAudio
PartOrText: TypeAlias = Template | Part


class GraderMessage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One message to a judge; its texts are templates."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Template | Part | Annotated[list[PartOrText], Meta(max_length=64)]
    type: Literal["message"] | UnsetType = UNSET


Messages: TypeAlias = Annotated[
    list[GraderMessage], Meta(min_length=1, max_length=64, description="What the judge is asked.")
]


class SamplingParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a judge answers; what is left open is the model's default."""

    seed: int | UnsetType | None = UNSET
    top_p: Annotated[float, Meta(ge=0, le=1)] | UnsetType | None = UNSET
    temperature: Annotated[float, Meta(ge=0, le=2)] | UnsetType | None = UNSET
    max_completions_tokens: (
        Annotated[int, Meta(ge=1, description="Most tokens of an answer, spelt as OpenAI does.")] | UnsetType | None
    ) = UNSET
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | UnsetType | None = UNSET


class StringCheckGrader(
    Struct, tag_field="type", tag="string_check", frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """1 if the comparison of two texts holds, else 0."""

    name: Name
    input: Template
    reference: Template
    operation: Annotated[
        Operation,
        Meta(description="Equal, not equal (ne, or neq), contains, contains whatever the case."),
    ]


class TextSimilarityGrader(
    Struct, tag_field="type", tag="text_similarity", frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """How alike two texts are, from 0 to 1."""

    name: Name
    input: Template
    reference: Template
    evaluation_metric: Metric
    pass_threshold: Threshold | UnsetType | None = UNSET


class ScoreModelGrader(
    Struct, tag_field="type", tag="score_model", frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """A score that a judge gives, clipped to `range`."""

    name: Name
    model: ModelName
    input: Messages
    range: Range | UnsetType | None = UNSET
    sampling_params: SamplingParams | UnsetType | None = UNSET
    pass_threshold: Threshold | UnsetType | None = UNSET

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and greatest score."""
        low, high = self.range or (0.0, 1.0)
        return float(low), float(high)


class LabelModelGrader(
    Struct, tag_field="type", tag="label_model", frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """1 if a judge gives a label that passes, else 0."""

    name: Name
    model: ModelName
    input: Messages
    labels: Annotated[list[Name], Meta(min_length=1, max_length=256, description="What the judge may answer.")]
    passing_labels: Annotated[list[Name], Meta(max_length=256, description="Those of the labels that pass.")]
    sampling_params: SamplingParams | UnsetType | None = UNSET


class PythonGrader(Struct, tag_field="type", tag="python", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `grade(sample, item)` of a Python program returns, which runs in a cage."""

    name: Name = "python"
    source: Annotated[str, Meta(min_length=1, max_length=256_000, description="Has `def grade(sample, item)`.")]
    image_tag: Annotated[str, Meta(max_length=64, description="Taken and not used.")] | UnsetType | None = UNSET
    pass_threshold: Threshold | UnsetType | None = UNSET


class ConversationMessage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One message of a conversation to be scored; its text is a template."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Template
    type: Literal["message"] | UnsetType = UNSET


class RewardModelGrader(
    Struct, tag_field="type", tag="selftune_reward", frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """What a reward model says of the last message of a conversation."""

    name: Name
    model: Annotated[
        str, Meta(min_length=1, max_length=512, description="A reward model that was trained on this server.")
    ]
    input: (
        Annotated[
            list[ConversationMessage],
            Meta(
                min_length=2,
                max_length=64,
                description="The conversation; its last message is the answer. Left out: `item.messages` and then "
                "`sample.output_text` as the assistant's.",
            ),
        ]
        | UnsetType
        | None
    ) = UNSET
    squash: Annotated[
        bool, Meta(description="Put 1 / (1 + exp(-score)) in place of the score, stretched over `range`.")
    ] = False
    range: (
        Annotated[
            list[float],
            Meta(
                min_length=2,
                max_length=2,
                description="Least and greatest score, to which it is clipped; with `squash` the ends of its curve, "
                "[0, 1] where it is left out.",
            ),
        ]
        | UnsetType
        | None
    ) = UNSET
    pass_threshold: Threshold | UnsetType | None = UNSET

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Least and greatest score; None where there is no such limit."""
        if not self.range:
            return (0.0, 1.0) if self.squash else None
        low, high = self.range
        return float(low), float(high)


class MultiGrader(Struct, tag_field="type", tag="multi", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A formula over the scores of other graders."""

    name: Name = "multi"
    graders: Annotated[
        dict[str, Any],
        Meta(description="Graders by the name that the formula has for them; or one grader, under its own name."),
    ]
    calculate_output: Annotated[
        str,
        Meta(min_length=1, max_length=4096, description="Such as `0.7 * exact + 0.3 * min(tone, 1)`."),
    ]


SingleGrader: TypeAlias = (
    StringCheckGrader | TextSimilarityGrader | ScoreModelGrader | LabelModelGrader | PythonGrader | RewardModelGrader
)
Grader: TypeAlias = SingleGrader | MultiGrader
RunnableGrader: TypeAlias = (
    StringCheckGrader | TextSimilarityGrader | ScoreModelGrader | PythonGrader | RewardModelGrader | MultiGrader
)
"""What a request or a job may name; label_model counts inside multi and in evals only, as at OpenAI."""


class RunGrader(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/fine_tuning/alpha/graders/run."""

    grader: RunnableGrader
    model_sample: Annotated[str, Meta(description="The answer to grade; sample.output_text.")]
    item: Annotated[dict[str, Any], Meta(description="The row of the data set that it answers.")] = {}


class ValidateGrader(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/fine_tuning/alpha/graders/validate."""

    grader: RunnableGrader


class ValidatedGrader(Struct, frozen=True, kw_only=True):
    """A grader that has been found sound, as it was sent."""

    grader: RunnableGrader


class GraderErrors(Struct, frozen=True, kw_only=True):
    """What went wrong while grading: eleven flags and three texts."""

    formula_parse_error: Annotated[bool, Meta(description="The formula has no number as its result.")] = False
    sample_parse_error: Annotated[bool, Meta(description="The sample is not what a template needs, as JSON.")] = False
    truncated_observation_error: bool = False
    unresponsive_reward_error: Annotated[bool, Meta(description="Grading took too long.")] = False
    invalid_variable_error: Annotated[bool, Meta(description="A template names what is not there.")] = False
    other_error: bool = False
    python_grader_server_error: bool = False
    python_grader_server_error_type: str | None = None
    python_grader_runtime_error: bool = False
    python_grader_runtime_error_details: str | None = None
    model_grader_server_error: bool = False
    model_grader_refusal_error: bool = False
    model_grader_parse_error: bool = False
    model_grader_server_error_details: str | None = None

    def __bool__(self) -> bool:
        """Whether anything went wrong."""
        return any(getattr(self, name) is True for name in self.__struct_fields__)


class JudgeUsage(Struct, frozen=True, kw_only=True):
    """Tokens of the answers of one judge."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: JudgeUsage) -> JudgeUsage:
        return JudgeUsage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            total_tokens=self.total_tokens + other.total_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
        )


class GraderMetadata(Struct, frozen=True, kw_only=True):
    """How a result came about."""

    name: str
    type: str
    errors: GraderErrors
    execution_time: Annotated[float, Meta(description="Seconds.")]
    scores: Annotated[dict[str, float], Meta(description="The score of each grader by its name.")]
    token_usage: Annotated[int | None, Meta(description="Tokens of all judges; null without any.")] = None
    sampled_model_name: Annotated[str | None, Meta(description="The judge; null without one, or with several.")] = None


class GraderResult(Struct, frozen=True, kw_only=True):
    """What a grader made of a sample; what went wrong is in `metadata.errors`, and the reward 0 then."""

    reward: float
    metadata: GraderMetadata
    sub_rewards: Annotated[dict[str, float], Meta(description="Of a multi grader: each grader's score.")]
    model_grader_token_usage_per_model: dict[str, JudgeUsage]
