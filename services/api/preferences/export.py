"""Preferences made into a training file: read once to be weighed, and once more to be written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import msgspec
import structlog
from msgspec import UNSET, Struct

from services.api.files.uploads import Uploads
from services.api.preferences.sources import OpinionSources
from services.api.preferences.statements import Opinion, Scales, Weighed, statements_of
from shared.errors import InvalidRequest
from shared.schemas.preferences import MAX_EXPORTED, ExportPreferences, PreferenceExport
from shared.store.preferences import Wanted

_log = structlog.get_logger()

_Read: TypeAlias = Callable[[], AsyncIterator[Opinion]]


class _Counts(Struct):
    preferences: int = 0
    lines: int = 0
    without_preference: int = 0
    unusable: int = 0


class Exports:
    """Writes training files for DPO and KTO."""

    def __init__(self, sources: OpinionSources, uploads: Uploads) -> None:
        self._sources = sources
        self._uploads = uploads

    async def export(self, request: ExportPreferences, *, project: str) -> PreferenceExport:
        """Make a file of what is wanted, and say what became of each preference.

        Raises InvalidRequest that names the field, NotFound, RateLimited when there is no room, Unavailable.
        """
        read = await self._reader(request, project)
        counts, scales = _Counts(), Scales()
        async for opinion in read():
            _weigh(opinion, request, counts, scales)
        weighed = scales.weigh(by_majority=request.contradictions == "majority")
        if not weighed.refs:
            raise InvalidRequest(
                "No preference is as this export wants them, or can be a line of its file.", code="nothing_to_export"
            )
        file = await self._uploads.make(
            _lines(read, request, weighed, counts),
            project=project,
            filename=f"preferences-{request.method}.jsonl" if request.filename is UNSET else request.filename,
            purpose="fine-tune",
            lineage=_lineage(request, counts, weighed),
        )
        _log.info("preferences.exported", file_id=file.id, lines=counts.lines)
        return PreferenceExport(
            file=file.public(),
            method=request.method,
            preferences=counts.preferences,
            lines=counts.lines,
            duplicates=weighed.duplicates,
            contradictions=weighed.contradictions,
            dropped=weighed.dropped,
            without_preference=counts.without_preference,
            unusable=counts.unusable,
        )

    async def _reader(self, request: ExportPreferences, project: str) -> _Read:
        wanted = Wanted(
            source=request.source,
            voter=request.voter,
            metadata=request.metadata or {},
            created_after=request.created_after,
            created_before=request.created_before,
        )
        run_id = request.ab_run_id
        if run_id is None:
            if request.said_by == "judge":
                raise _refused("said_by", "what a judge said is taken of an A/B run; name it in 'ab_run_id'")
            return lambda: self._sources.stored(project, wanted)
        _check_filters(request)
        await self._sources.check_ab_run(run_id, project)
        if request.said_by == "judge":
            return lambda: self._sources.judged(run_id, project)
        return lambda: self._sources.voted(run_id, project, wanted)


def _check_filters(request: ExportPreferences) -> None:
    """Raises InvalidRequest for filters that say nothing of what was said in an A/B run."""
    names = ["source", "metadata"]
    if request.said_by == "judge":
        names += ["voter", "created_after", "created_before"]
    for name in names:
        if getattr(request, name) is not None:
            raise _refused(name, "with 'ab_run_id' there is nothing of the kind to choose by")


def _weigh(opinion: Opinion, request: ExportPreferences, counts: _Counts, scales: Scales) -> None:
    counts.preferences += 1
    if counts.preferences > MAX_EXPORTED:
        raise InvalidRequest(
            f"More than {MAX_EXPORTED:,} preferences are as this export wants them; choose some by 'created_after' and "
            "'created_before'.",
            code="too_many_preferences",
            param="created_after",
        )
    found = [*statements_of(opinion, request.method)]
    if not found:
        is_vote = opinion.input is not None and request.ab_run_id is not None
        counts.without_preference += is_vote
        counts.unusable += not is_vote
    for statement in found:
        scales.add(statement)


async def _lines(read: _Read, request: ExportPreferences, weighed: Weighed, counts: _Counts) -> AsyncIterator[bytes]:
    async for opinion in read():
        for statement in statements_of(opinion, request.method):
            if statement.ref in weighed.refs:
                counts.lines += 1
                yield statement.line()


def _lineage(request: ExportPreferences, counts: _Counts, weighed: Weighed) -> dict[str, Any]:
    """Say what a file is made of: the request, and what it has found."""
    asked: dict[str, Any] = msgspec.to_builtins(request)
    return {
        "type": "preferences",
        **{name: value for name, value in asked.items() if value is not None and name != "filename"},
        "preferences": counts.preferences,
        "duplicates": weighed.duplicates,
        "contradicted": weighed.contradictions,
    }


def _refused(field: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for '{field}': {reason}.", code="invalid_value", param=field)
