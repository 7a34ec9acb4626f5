"""Files as the API shows them."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

UploadPurpose: TypeAlias = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
FilePurpose: TypeAlias = Literal[
    "assistants", "assistants_output", "batch", "batch_output", "fine-tune", "fine-tune-results", "vision", "user_data",
    "evals",
]  # fmt: skip


class File(Struct, frozen=True, kw_only=True):
    """An uploaded or generated file."""

    id: str
    object: Literal["file"] = "file"
    bytes: Annotated[int, Meta(ge=0, description="Size in bytes.")]
    created_at: Annotated[int, Meta(description="Unix time in seconds.")]
    expires_at: Annotated[int | None, Meta(description="Unix time in seconds, or null if it is kept.")] = None
    filename: str
    purpose: FilePurpose
    status: Literal["uploaded", "processed", "error"] = "processed"
    status_details: str | None = None
