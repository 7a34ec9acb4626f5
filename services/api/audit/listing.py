"""Pages of the audit log, and what may be asked for."""

from __future__ import annotations

from typing import Any

from litestar.datastructures import MultiDict

from services.api.audit import trail
from services.api.documents import Described
from shared.audit_records import AuditRecord
from shared.errors import InvalidRequest, NotFound
from shared.store.audit import AuditStore, Span
from shared.store.projects import ProjectStore

_CHOICES = {
    "project_ids[]": "Of these projects.",
    "event_types[]": "Of these types, such as `api_key.created`.",
    "actor_ids[]": "Done with one of these API keys, or by one of these service accounts.",
    "resource_ids[]": "About one of these objects.",
}
_BOUNDS = {f"effective_at[{bound}]": bound for bound in ("gt", "gte", "lt", "lte")}
_MOST_S = 10**11

FILTERS: list[Described] = [
    *(
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": {"type": "array", "items": {"type": "string"}},
            "description": text,
        }
        for name, text in _CHOICES.items()
    ),
    *(
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": {"type": "integer", "minimum": 0, "maximum": _MOST_S},
            "description": "Unix time in seconds.",
        }
        for name in _BOUNDS
    ),
]
"""Query parameters, for the OpenAPI document."""


async def listed(
    store: AuditStore,
    projects: ProjectStore,
    query: MultiDict[Any],
    *,
    limit: int,
    after: str | None,
    before: str | None,
) -> dict[str, Any]:
    """Return a page in OpenAI's form. Raises InvalidRequest for a time that is none, NotFound for unknown places."""
    await trail.settle(store)
    chosen = {name: frozenset(query.getall(name, [])) for name in _CHOICES}

    def wanted(record: AuditRecord) -> bool:
        values = {
            "project_ids[]": {record.project},
            "event_types[]": {record.type},
            "actor_ids[]": {record.key_id, record.service_account} - {""},
            "resource_ids[]": set(record.resources),
        }
        return all(not given or values[name] & given for name, given in chosen.items())

    found, more = await store.page(wanted, span=_span(query), after=after, before=before, limit=limit)
    names = await _names(projects, {record.project for _, record in found} - {""})
    data = [record.public(entry, project_name=names.get(record.project, "")) for entry, record in found]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": more,
    }


def _span(query: MultiDict[Any]) -> Span:
    """Form the span of milliseconds in which seconds lie that are within every bound."""
    span = Span()
    for name, bound in _BOUNDS.items():
        for value in query.getall(name, []):
            second = _second(name, str(value))
            if bound in ("gt", "gte"):
                first = (second + (bound == "gt")) * 1000
                span = Span(first_ms=max(span.first_ms, first), last_ms=span.last_ms)
            else:
                last = (second + (bound == "lte")) * 1000 - 1
                span = Span(first_ms=span.first_ms, last_ms=min(span.last_ms, last))
    return span


def _second(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 12) or int(value) > _MOST_S:
        raise InvalidRequest(
            f"'{name}' is {value[:100]!r}; it is Unix time in seconds.", code="invalid_value", param=name
        )
    return int(value)


async def _names(projects: ProjectStore, wanted: set[str]) -> dict[str, str]:
    found = {}
    for project in sorted(wanted):
        try:
            found[project] = (await projects.get(project)).name
        except NotFound:
            continue
    return found
