"""The graders that a multi grader is made of."""

from __future__ import annotations

import msgspec

from shared.errors import InvalidRequest
from shared.schemas.graders import MultiGrader, SingleGrader

MAX_PARTS = 64


def parts_of(multi: MultiGrader, *, where: str = "grader") -> dict[str, SingleGrader]:
    """Return the parts by the name that the formula has for them.

    `graders` is a map of them, as OpenAI's API and guide have it, or a single one, as its specification has it, whose
    name is its own. Raises InvalidRequest that names the field below `where`.
    """
    field = f"{where}.graders"
    if isinstance(multi.graders.get("type"), str):
        only = _converted(multi.graders, field)
        return {only.name: only}
    if not 1 <= len(multi.graders) <= MAX_PARTS:
        raise InvalidRequest(
            f"'{field}' has {len(multi.graders)} graders; it may have 1 to {MAX_PARTS}.",
            code="invalid_value",
            param=field,
        )
    return {name: _converted(part, f"{field}.{name[:100]}") for name, part in multi.graders.items()}


def _converted(part: object, field: str) -> SingleGrader:
    if isinstance(part, dict) and part.get("type") == "multi":
        raise InvalidRequest(
            f"Invalid value for '{field}': a multi grader is no part of another.", code="invalid_value", param=field
        )
    try:
        single: SingleGrader = msgspec.convert(part, SingleGrader)
        return single
    except msgspec.ValidationError as error:
        fault, _, place = str(error).partition(" - at `$")
        param = f"{field}{place.rstrip('`')}"
        raise InvalidRequest(
            f"Invalid value for '{param}': {fault[:1].lower()}{fault[1:500]}.", code="invalid_value", param=param
        ) from error
