"""What a fine-tuned model keeps with it: defaults for requests, a chat template, its keys, whether it is pinned."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

MAX_TEXT = 65_536
"""Characters of a system prompt; bytes of a chat template."""

SystemPrompt: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_TEXT,
        description="Put in front of conversations that have no system or developer message.",
    ),
]
ChatTemplate: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_TEXT,
        description="Jinja template that writes conversations, in place of the base's; at most 64 KiB.",
    ),
]
Temperature: TypeAlias = Annotated[float, Meta(ge=0, le=2)]
TopP: TypeAlias = Annotated[float, Meta(gt=0, le=1)]
Penalty: TypeAlias = Annotated[float, Meta(ge=-2, le=2)]
Tokens: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1, description="Longest answer, in tokens.")]
Seed: TypeAlias = Annotated[
    int, Meta(ge=-(2**63), le=2**63 - 1, description="With one, the same request has the same answer.")
]
StopText: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256)]
StopTexts: TypeAlias = Annotated[
    list[StopText], Meta(min_length=1, max_length=4, description="Texts at which answers end.")
]
AllowedKeys: TypeAlias = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=128)]],
    Meta(
        max_length=256,
        description="Ids of the API keys that may use the model, besides those with the scope admin; null is every "
        "key of the projects that may.",
    ),
]
Pinned: TypeAlias = Annotated[
    bool, Meta(description="Whether inference servers keep it in memory, also while nobody uses it.")
]


class UpdateModelSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/models/{model}/settings; what is left out stays, null takes a setting away."""

    system_prompt: SystemPrompt | UnsetType | None = UNSET
    temperature: Temperature | UnsetType | None = UNSET
    top_p: TopP | UnsetType | None = UNSET
    max_completion_tokens: Tokens | UnsetType | None = UNSET
    stop: StopText | StopTexts | UnsetType | None = UNSET
    presence_penalty: Penalty | UnsetType | None = UNSET
    frequency_penalty: Penalty | UnsetType | None = UNSET
    seed: Seed | UnsetType | None = UNSET
    chat_template: ChatTemplate | UnsetType | None = UNSET
    pinned: Pinned | UnsetType | None = UNSET
    allowed_keys: AllowedKeys | UnsetType | None = UNSET


class ModelSettings(Struct, frozen=True, kw_only=True):
    """The settings of a model; null is one that it does not have."""

    object: Literal["model.settings"] = "model.settings"
    model: str
    revision: Annotated[int, Meta(description="Counts the changes; 0 before the first.")]
    updated_at: Annotated[int | None, Meta(description="Unix time of the last change.")]
    system_prompt: SystemPrompt | None
    temperature: Temperature | None
    top_p: TopP | None
    max_completion_tokens: Tokens | None
    stop: StopTexts | None
    presence_penalty: Penalty | None
    frequency_penalty: Penalty | None
    seed: Seed | None
    chat_template: ChatTemplate | None
    pinned: Pinned
    allowed_keys: AllowedKeys | None
