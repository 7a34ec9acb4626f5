"""Aliases: names of a project's own that point to models, who else answers under them, and how that went."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

from shared.schemas.gates import Gate
from shared.schemas.monitors import Monitor

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
MAX_NAME = 128

Name: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_NAME,
        description="Letters, digits, '.', '_' and '-', with a letter or digit in front.",
        extra_json_schema={"pattern": NAME_PATTERN},
    ),
]
ModelId: TypeAlias = Annotated[
    str, Meta(min_length=1, max_length=512, description="Id of a base or fine-tuned model; not another alias.")
]
Description: TypeAlias = Annotated[str, Meta(max_length=512, description="A text of yours.")]
Reason: TypeAlias = Annotated[str, Meta(max_length=512, description="Why; the history shows it.")]
ExpectedRevision: TypeAlias = Annotated[
    int, Meta(ge=1, le=2**53 - 1, description="Refuse with `alias_moved` unless this is the alias's revision.")
]
WaitWarm: TypeAlias = Annotated[
    bool, Meta(description="Wait up to 10 seconds until an inference server has the new model in memory.")
]


OverrideGate: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=512,
        description="Why the alias's gate is passed over or changed; needs the scope `admin`. It is in the history.",
    ),
]


class TrafficLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model's answers must keep to; crossing one of the limits takes the model out."""

    max_error_rate: (
        Annotated[float, Meta(ge=0, lt=1, description="Largest share of requests that fail on the server's side.")]
        | None
    ) = None
    max_p95_first_byte_ms: (
        Annotated[int, Meta(ge=1, le=3_600_000, description="Largest 95th percentile of the time to the first byte.")]
        | None
    ) = None
    max_p95_total_ms: (
        Annotated[int, Meta(ge=1, le=3_600_000, description="Largest 95th percentile of the time to the last byte.")]
        | None
    ) = None
    min_requests: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Requests in the window before any limit counts.")
    ] = 20
    window_s: Annotated[int, Meta(ge=10, le=3600, description="Seconds to look back.")] = 300


class Canary(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A second model that gets a share of an alias's requests."""

    model: ModelId
    percent: Annotated[float, Meta(gt=0, lt=100, description="Share of the users that it answers.")]
    limits: TrafficLimits | None = None
    """Crossing them takes the canary out; None leaves it in whatever happens."""


class Watch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model must keep to that the alias was just pointed to, or the alias goes back."""

    limits: TrafficLimits
    duration_s: Annotated[int, Meta(ge=60, le=7 * 86_400, description="Seconds from the move.")] = 3600


class Shadow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A second model that answers some requests once more, for comparison; clients see nothing of it."""

    model: ModelId
    percent: Annotated[float, Meta(gt=0, le=100, description="Share of the requests, drawn at random.")]
    max_in_flight: Annotated[
        int, Meta(ge=1, le=32, description="Most at a time in one API process; what is more is left out.")
    ] = 4
    keep_pairs: Annotated[int, Meta(ge=1, le=1000, description="Most pairs that are kept; the oldest go.")] = 200
    keep_s: Annotated[int, Meta(ge=60, le=30 * 86_400, description="Seconds for which a pair is kept.")] = 86_400


class CreateAlias(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/aliases."""

    name: Name
    model: ModelId
    description: Description = ""
    watch: Watch | None = None
    reason: Reason = ""
    wait_warm: WaitWarm = True


class UpdateAlias(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/aliases/{alias}; what is left out stays, null takes it away."""

    model: ModelId | UnsetType = UNSET
    description: Description | UnsetType = UNSET
    canary: Canary | UnsetType | None = UNSET
    shadow: Shadow | UnsetType | None = UNSET
    watch: Watch | UnsetType | None = UNSET
    gate: Gate | UnsetType | None = UNSET
    monitor: Monitor | UnsetType | None = UNSET
    override_gate: OverrideGate | None = None
    expected_revision: ExpectedRevision | None = None
    reason: Reason = ""
    wait_warm: WaitWarm = True


class RollBackAlias(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/aliases/{alias}/rollback."""

    revision: (
        Annotated[
            int,
            Meta(ge=1, le=2**53 - 1, description="Point to what this revision pointed to; else to the model before."),
        ]
        | None
    ) = None
    override_gate: OverrideGate | None = None
    expected_revision: ExpectedRevision | None = None
    reason: Reason = ""
    wait_warm: WaitWarm = True


class PromoteCanary(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/aliases/{alias}/promote."""

    override_gate: OverrideGate | None = None
    expected_revision: ExpectedRevision | None = None
    reason: Reason = ""
    wait_warm: WaitWarm = True


class Alias(Struct, frozen=True, kw_only=True):
    """A name that stands for a model wherever a model is named."""

    id: Annotated[str, Meta(description="Its name.")]
    object: Literal["alias"] = "alias"
    created_at: int
    updated_at: int
    revision: Annotated[int, Meta(description="Grows by one with every change.")]
    model: Annotated[str, Meta(description="The model that it points to.")]
    previous_model: Annotated[str | None, Meta(description="The one before, where a rollback goes.")]
    description: str
    canary: Canary | None
    shadow: Shadow | None
    watch: Watch | None
    gate: Gate | None
    monitor: Monitor | None


class ChangedAlias(Alias, frozen=True, kw_only=True):
    """Answer to a change of an alias."""

    warm: Annotated[
        bool,
        Meta(
            description="Whether an inference server that answers now has the model at hand that the change is about: "
            "the new canary, else the model that the alias points to."
        ),
    ]
    warning: Annotated[
        str | None,
        Meta(description="Which of the new models are for fewer API keys than the model that the alias pointed to."),
    ]


class DeletedAlias(Struct, frozen=True, kw_only=True):
    """Answer to a deletion."""

    id: str
    object: Literal["alias.deleted"] = "alias.deleted"
    deleted: Literal[True] = True


Action: TypeAlias = Literal[
    "created", "moved", "promoted", "rolled_back", "canary_set", "canary_removed", "configured", "watch_ended"
]


class AliasRevision(Struct, frozen=True, kw_only=True):
    """One change of an alias."""

    id: Annotated[str, Meta(description="The revision, as a text.")]
    object: Literal["alias.revision"] = "alias.revision"
    revision: int
    created_at: int
    action: Action
    automatic: Annotated[
        bool, Meta(description="Whether the server did it, since a limit was crossed or a gate not passed any more.")
    ] = False
    key_id: Annotated[str | None, Meta(description="The key whose owner did it.")] = None
    key_name: str | None = None
    previous_model: Annotated[str | None, Meta(description="The model that the alias pointed to before.")] = None
    model: Annotated[str, Meta(description="The model that it points to since.")]
    canary_model: str | None = None
    canary_percent: float | None = None
    shadow_model: str | None = None
    reason: str = ""
    promotion_id: Annotated[str | None, Meta(description="The promotion or recheck that a gate has decided.")] = None
    eval_run_ids: Annotated[list[str], Meta(description="Runs that it has decided by.")] = []
    gate_overridden: Annotated[bool, Meta(description="Whether the alias's gate was passed over.")] = False


class Latency(Struct, frozen=True, kw_only=True):
    """Percentiles in milliseconds, from a histogram: never below the true value, and at most a fifth above."""

    p50: float
    p95: float
    p99: float


class ModelTraffic(Struct, frozen=True, kw_only=True):
    """How one model of an alias did in the window."""

    id: Annotated[str, Meta(description="The model.")]
    object: Literal["alias.traffic"] = "alias.traffic"
    role: Annotated[Literal["target", "canary", "shadow", "former"], Meta(description="What it is to the alias now.")]
    requests: Annotated[int, Meta(description="Answered or failed.")]
    errors: Annotated[int, Meta(description="Those that failed on the server's side.")]
    error_rate: float
    refused: Annotated[int, Meta(description="Beside `requests`: wrong requests, which say nothing of the model.")]
    abandoned: Annotated[int, Meta(description="Beside `requests`: those whose client left before the end.")]
    first_byte_ms: Latency | None
    total_ms: Latency | None
    input_tokens: Annotated[int, Meta(description="Of the answers that tell their usage.")]
    output_tokens: int
    shadowed: Annotated[int, Meta(description="Requests that it answered as a shadow; not among `requests`.")]
    shadow_skipped: Annotated[
        int,
        Meta(
            description="Drawn for the shadow and left out: too many were on, or no inference server had it in memory "
            "and room to spare."
        ),
    ]


class AliasTraffic(Struct, frozen=True, kw_only=True):
    """Live statistics of an alias, a second behind at most."""

    object: Literal["list"] = "list"
    window_s: int
    data: list[ModelTraffic]


class ShadowToolCall(Struct, frozen=True, kw_only=True):
    """A tool that an answer calls."""

    name: str
    arguments: str


class ShadowAnswer(Struct, frozen=True, kw_only=True):
    """One of two answers to a request."""

    model: str
    error: str | None = None
    """Why there is no whole answer."""
    text: str = ""
    tool_calls: list[ShadowToolCall] = []
    truncated: bool = False
    """Whether text and tool calls are only the beginning."""
    first_byte_ms: float | None = None
    total_ms: float
    input_tokens: int = 0
    output_tokens: int = 0


class ShadowPair(Struct, frozen=True, kw_only=True):
    """A request, the answer that its client got, and the shadow's."""

    id: str
    object: Literal["alias.shadow_pair"] = "alias.shadow_pair"
    created_at: int
    expires_at: int
    request_id: Annotated[str, Meta(description="The `x-request-id` of the client's answer.")]
    endpoint: str
    request: dict[str, Any]
    answer: ShadowAnswer
    shadow: ShadowAnswer


class DeletedShadowPairs(Struct, frozen=True, kw_only=True):
    """Answer to the deletion of all pairs of an alias."""

    id: Annotated[str, Meta(description="The alias.")]
    object: Literal["alias.shadow_pairs.deleted"] = "alias.shadow_pairs.deleted"
    deleted: Literal[True] = True
