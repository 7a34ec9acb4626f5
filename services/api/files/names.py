"""Names of files: as clients give them, and as a download gives them back."""

from __future__ import annotations

import re
from urllib.parse import quote

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NOT_QUOTABLE = re.compile(r'[^ -~]|["\\%]')
"""What RFC 6266, appendix D, keeps out of `filename`: clients differ in how they read escapes and percent signs."""


def safe_name(filename: str) -> str:
    """Keep the last component of a client's path, without control characters; `upload` if nothing is left."""
    name = _CONTROL.sub("", filename.replace("\\", "/").rpartition("/")[2]).strip()[:255]
    return name if name not in ("", ".", "..") else "upload"


def attachment(filename: str) -> str:
    """Form a Content-Disposition (RFC 6266): in ASCII for every client, and exact beside it where that differs."""
    plain = _NOT_QUOTABLE.sub("_", filename)
    exact = "" if plain == filename else f"; filename*=UTF-8''{quote(filename, safe='')}"
    return f'attachment; filename="{plain}"{exact}'
