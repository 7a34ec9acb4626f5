"""Whether two answers reply to the same conversation, and whether its text is all there is to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from services.api.evals.questions import shown_messages
from shared.schemas.ab_runs import InputStatus
from shared.schemas.evals import OutputItem, SampleMessage

_PLAIN = frozenset(("role", "content", "type"))


def input_status(here: OutputItem, other: OutputItem) -> InputStatus:
    """Compare what two answers to one row were asked.

    An answer that was brought along is taken for one to the row's own conversation.
    """
    one, two = here.sample.input, other.sample.input
    if one and two:
        if one != two:
            return "differs"
        return "shortened" if _is_shortened(one, here.datasource_item) else "same"
    known = one or two
    own = here.datasource_item.get("input") or here.datasource_item.get("messages")
    if known and known != shown_messages(own if isinstance(own, list) else []):
        return "differs"
    return "unknown"


def _is_shortened(asked: list[SampleMessage], item: dict[str, Any]) -> bool:
    """Tell whether these are messages of the row, which have more to them than their text."""
    return any(
        shown_messages(found) == asked and not all(_is_plain(message) for message in found) for found in _lists(item)
    )


def _lists(item: dict[str, Any]) -> Iterator[list[Any]]:
    """Yield what a row has at the places where messages may be taken from."""
    for value in item.values():
        if isinstance(value, list):
            yield value
        elif isinstance(value, dict):
            yield from _lists(value)


def _is_plain(message: Any) -> bool:
    """Tell whether a message is a role and a text."""
    rest = {name for name, value in message.items() if value is not None} if isinstance(message, dict) else {""}
    return rest <= _PLAIN and isinstance(message.get("content"), str)
