"""Preferences: what people, or models, have said of answers, collected to be trained on."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from shared.preference_data import Output, PreferenceInput
from shared.schemas.ab_runs import Voter
from shared.schemas.files import File
from shared.schemas.jobs import Metadata

MAX_EXPORTED = 100_000

Source: TypeAlias = Annotated[
    str, Meta(min_length=1, max_length=256, description="Where it was collected, such as a pair of aliases.")
]
_MESSAGES = {"type": ["array", "null"], "items": {"type": "object"}}


class CreatePreference(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/preferences: two answers of which one is preferred, or one answer with a label."""

    input: Annotated[PreferenceInput, Meta(description="What was asked: messages, and tools if there were any.")]
    preferred_output: Annotated[Output | None, Meta(description="The better answer; ends with the assistant's.")] = None
    non_preferred_output: Output | None = None
    output: Annotated[Output | None, Meta(description="An answer by itself, with `label`.")] = None
    label: Annotated[bool | None, Meta(description="Whether `output` is a good answer.")] = None
    source: Source | None = None
    voter: Voter | None = None
    metadata: Metadata | None = None


class Preference(Struct, frozen=True, kw_only=True):
    """A preference as the API shows it; conversations are as they were posted."""

    id: str
    object: Literal["preference"] = "preference"
    created_at: int
    input: Annotated[Raw, Meta(extra_json_schema={"type": "object"})]
    preferred_output: Annotated[Raw, Meta(extra_json_schema=_MESSAGES)]
    non_preferred_output: Annotated[Raw, Meta(extra_json_schema=_MESSAGES)]
    output: Annotated[Raw, Meta(extra_json_schema=_MESSAGES)]
    label: bool | None
    source: str | None
    voter: str | None
    metadata: dict[str, str] | None


class PreferenceDeleted(Struct, frozen=True, kw_only=True):
    """Answer to the deletion of a preference."""

    id: str
    object: Literal["preference.deleted"] = "preference.deleted"
    deleted: Literal[True] = True


class ExportPreferences(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/preferences/export. All filters must be met."""

    method: Annotated[
        Literal["dpo", "kto"], Meta(description="Whose training file: pairs, or single answers with a label.")
    ]
    ab_run_id: (
        Annotated[
            str,
            Meta(min_length=1, max_length=128, description="Take what was said in this A/B run, not what is stored."),
        ]
        | None
    ) = None
    said_by: Annotated[
        Literal["people", "judge"], Meta(description="Whose word of an A/B run is taken; stored ones are people's.")
    ] = "people"
    source: Source | None = None
    voter: Voter | None = None
    metadata: Annotated[Metadata | None, Meta(description="Only those that carry these pairs.")] = None
    created_after: Annotated[int, Meta(ge=0, description="Unix time in seconds; none before it.")] | None = None
    created_before: Annotated[int, Meta(ge=0, description="Unix time in seconds; none after it.")] | None = None
    contradictions: Annotated[
        Literal["majority", "drop"],
        Meta(description="Where both was said of the same answers: what more have said, or nothing of it."),
    ] = "majority"
    filename: Annotated[str, Meta(min_length=1, max_length=255)] | UnsetType = UNSET


class PreferenceExport(Struct, frozen=True, kw_only=True):
    """A training file made of preferences, and what became of each."""

    object: Literal["preference.export"] = "preference.export"
    file: File
    method: Literal["dpo", "kto"]
    preferences: Annotated[int, Meta(description="Preferences or votes that met the filters.")]
    lines: Annotated[int, Meta(description="Lines of the file.")]
    duplicates: Annotated[
        int, Meta(description="What repeats what was said already, or what its voter has said anew since.")
    ]
    contradictions: Annotated[int, Meta(description="Answers of which both was said.")]
    dropped: Annotated[int, Meta(description="Those of them that are not in the file.")]
    without_preference: Annotated[int, Meta(description="Votes for a tie, or for neither where pairs are wanted.")]
    unusable: Annotated[
        int, Meta(description="What the file's form cannot hold: labels in pairs, rows without one conversation.")
    ]
