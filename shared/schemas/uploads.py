"""Uploads: large files that come in parts."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from shared.schemas.files import ExpiresAfter, File, FilePurpose, UploadPurpose

MAX_PART_BYTES = 64 << 20
"""OpenAI says 64 MB, and its SDK sends parts of 64 MiB."""


class CreateUpload(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/uploads."""

    filename: Annotated[str, Meta(min_length=1, max_length=1024, description="Name of the file to be.")]
    purpose: UploadPurpose
    bytes: Annotated[int, Meta(ge=0, le=1 << 50, description="Size of the whole file in bytes.")]
    mime_type: Annotated[str, Meta(min_length=1, max_length=256, description="Type of the content; not checked.")]
    expires_after: Annotated[ExpiresAfter, Meta(description="When the finished file is deleted.")] | None = None


class CompleteUpload(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/uploads/{upload_id}/complete."""

    part_ids: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=128)]],
        Meta(max_length=100_000, description="The parts, in the order in which they make the file."),
    ]
    md5: (
        Annotated[str, Meta(pattern=r"\A[0-9A-Fa-f]{32}\Z", description="MD5 of the whole file, in hexadecimal.")]
        | None
    ) = None


class UploadPart(Struct, frozen=True, kw_only=True):
    """A part that is on disk."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


class Upload(Struct, frozen=True, kw_only=True):
    """A file that comes in parts."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: Annotated[int, Meta(ge=0, description="Size that was announced, in bytes.")]
    created_at: int
    expires_at: Annotated[int, Meta(description="Unix time until which it has to be completed.")]
    filename: str
    purpose: FilePurpose
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: File | UnsetType = UNSET
    """The file, once the upload is completed."""
