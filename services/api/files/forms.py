"""What the form of POST /v1/files says about the file: purpose and lifetime."""

from __future__ import annotations

from typing import get_args

from services.api.files.multipart_form import Received, Shape
from shared.errors import InvalidRequest
from shared.schemas.files import EXPIRY_RANGE_S, UploadPurpose

PURPOSES: tuple[UploadPurpose, ...] = get_args(UploadPurpose)

_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"


def purpose_of(text: str) -> UploadPurpose:
    """Read the purpose. Raises InvalidRequest."""
    for purpose in PURPOSES:
        if text == purpose:
            return purpose
    raise InvalidRequest(
        f"'{text[:100]}' is not one of {list(PURPOSES)} - 'purpose'", code="invalid_value", param="purpose"
    )


def lifetime_of(form: Received) -> int | None:
    """Read `expires_after`: how many seconds the file is to be kept, None for ever. Raises InvalidRequest."""
    anchor, seconds = form.fields.get(_ANCHOR), form.fields.get(_SECONDS)
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidRequest(
            "'expires_after[anchor]' must be 'created_at'.", code="invalid_value", param="expires_after.anchor"
        )
    if not seconds or not seconds.isascii() or not seconds.isdigit() or len(seconds) > 10:
        seconds = "-1"
    if int(seconds) not in EXPIRY_RANGE_S:
        raise InvalidRequest(
            f"'expires_after[seconds]' must be a whole number from {EXPIRY_RANGE_S[0]} to {EXPIRY_RANGE_S[-1]}.",
            code="invalid_value",
            param="expires_after.seconds",
        )
    return int(seconds)


def _check(name: str, text: str) -> None:
    if name == "purpose":
        purpose_of(text)


FILE_FORM = Shape(
    file="file", fields=frozenset({"purpose", _ANCHOR, _SECONDS}), required=frozenset({"purpose"}), check=_check
)
PART_FORM = Shape(file="data")
