"""Files as the API shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

UploadPurpose: TypeAlias = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
FilePurpose: TypeAlias = Literal[
    "assistants", "assistants_output", "batch", "batch_output", "fine-tune", "fine-tune-results", "vision", "user_data",
    "evals",
]  # fmt: skip


EXPIRY_RANGE_S = range(3600, 2_592_000 + 1)
"""How long an expiring file may be kept, in seconds: an hour to thirty days."""


class ExpiresAfter(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a file is deleted by itself."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=EXPIRY_RANGE_S[0], le=EXPIRY_RANGE_S[-1], description="Seconds after the anchor.")]


class File(Struct, frozen=True, kw_only=True):
    """An uploaded or generated file."""

    id: str
    object: Literal["file"] = "file"
    bytes: Annotated[int, Meta(ge=0, description="Size in bytes.")]
    created_at: Annotated[int, Meta(description="Unix time in seconds.")]
    expires_at: Annotated[int, Meta(description="Unix time in seconds; absent if the file is kept.")] | UnsetType = (
        UNSET
    )
    filename: str
    purpose: FilePurpose
    status: Literal["uploaded", "processed", "error"] = "processed"
    lineage: Annotated[dict[str, Any], Meta(description="What this server made the file of.")] | UnsetType = UNSET
