"""Taking preferences in."""

from __future__ import annotations

import re
import time

import msgspec
import structlog
from msgspec import Raw, Struct

from services.api.bodies import decode
from shared.chat_data import check_messages
from shared.errors import InvalidRequest
from shared.preference_data import PreferenceExample, check_output, check_preference
from shared.preference_records import ABSENT, PreferenceRecord
from shared.schemas.preferences import CreatePreference
from shared.store.preferences import PreferenceStore

_log = structlog.get_logger()

MAX_BYTES = 1 << 20
"""Longest body: an export holds one preference at a time, and a list a page of them."""

_PAIR, _LABELLED = ("preferred_output", "non_preferred_output"), ("output", "label")
_FIELD = re.compile(r"(?:input\.messages|preferred_output|non_preferred_output|output)(?:\[\d+\](?:\.\w+)?)?")


class _Posted(Struct, frozen=True):
    """The conversations of a preference as they were posted."""

    input: Raw
    preferred_output: Raw = ABSENT
    non_preferred_output: Raw = ABSENT
    output: Raw = ABSENT


_CREATE = msgspec.json.Decoder(CreatePreference)
_decode_posted = msgspec.json.Decoder(_Posted).decode


class Preferences:
    """Keeps preferences that are sound."""

    def __init__(self, store: PreferenceStore) -> None:
        self._store = store

    def check(self, body: bytes) -> CreatePreference:
        """Raises InvalidRequest that names the field."""
        wanted = decode(body, _CREATE)
        _check(wanted)
        return wanted

    async def create(
        self, wanted: CreatePreference, body: bytes, *, project: str, preference_id: str
    ) -> PreferenceRecord:
        """Store a preference as it was posted in `body`; one that has this id already is returned as it is.

        Raises RateLimited.
        """
        posted = _decode_posted(body)
        record = PreferenceRecord(
            id=preference_id,
            project=project,
            created_at=int(time.time()),
            input=posted.input,
            preferred_output=posted.preferred_output,
            non_preferred_output=posted.non_preferred_output,
            output=posted.output,
            label=wanted.label,
            source=wanted.source,
            voter=wanted.voter,
            metadata=wanted.metadata,
        )
        _log.info("preference.created", preference_id=preference_id)
        return await self._store.create(record)


def _check(wanted: CreatePreference) -> None:
    """Raises InvalidRequest for what is neither two outputs that differ, nor one with a label."""
    given = [name for name in (*_PAIR, *_LABELLED) if getattr(wanted, name) is not None]
    if not set(given) & set(_LABELLED):
        _check_all(given, _PAIR)
    elif not set(given) & set(_PAIR):
        _check_all(given, _LABELLED)
    else:
        raise InvalidRequest(
            f"'{given[0]}' and '{given[-1]}' do not go together: send preferred_output and non_preferred_output, or "
            "output and label.",
            code="invalid_value",
            param=given[-1],
        )
    try:
        _check_conversation(wanted)
    except ValueError as error:
        raise _explained(str(error)) from error


def _check_all(given: list[str], needed: tuple[str, ...]) -> None:
    for name in needed:
        if name not in given:
            raise InvalidRequest(
                f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name
            )


def _check_conversation(wanted: CreatePreference) -> None:
    """Raises ValueError that begins with the field."""
    if wanted.preferred_output is not None and wanted.non_preferred_output is not None:
        check_preference(
            PreferenceExample(
                input=wanted.input,
                preferred_output=wanted.preferred_output,
                non_preferred_output=wanted.non_preferred_output,
            )
        )
        if wanted.preferred_output == wanted.non_preferred_output:
            raise ValueError("non_preferred_output is the same as preferred_output")
    if wanted.output is not None:
        check_messages(wanted.input.messages, "input.messages")
        check_output(wanted.output, "output")


def _explained(fault: str) -> InvalidRequest:
    found = _FIELD.match(fault)
    field = found[0] if found else None
    return InvalidRequest(f"Invalid value: {fault}.", code="invalid_value", param=field)
