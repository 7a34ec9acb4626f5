"""Pages of lists: from stored records to OpenAI's Page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from litestar.datastructures import MultiDict

from shared.errors import NotFound
from shared.records import JobRecord
from shared.schemas.checkpoints import Checkpoint, CheckpointPermission
from shared.schemas.events import Event
from shared.schemas.files import File
from shared.schemas.jobs import Job
from shared.schemas.organization import AdminKey, Project, ProjectKey, RateLimit, ServiceAccount
from shared.schemas.paging import Page
from shared.store.jobs import JobStore

T = TypeVar(
    "T", File, Job, Event, Checkpoint, CheckpointPermission, Project, RateLimit, ServiceAccount, ProjectKey, AdminKey
)

_SCAN = 100


def page(items: Sequence[T], *, has_more: bool) -> Page[T]:
    """Form a page; `after` of the next one is its `last_id`."""
    return Page(
        data=list(items),
        first_id=items[0].id if items else "",
        last_id=items[-1].id if items else "",
        has_more=has_more,
    )


def cut(items: Sequence[T], *, after: str | None, limit: int) -> Page[T]:
    """Cut a page out of a whole list. Raises NotFound when `after` is not in it."""
    start = 0
    if after is not None:
        places = [place for place, item in enumerate(items) if item.id == after]
        if not places:
            raise NotFound(f"No such object to list after: {after}", param="after")
        start = places[0] + 1
    return page(items[start : start + limit], has_more=len(items) > start + limit)


def metadata_filter(query: MultiDict[Any]) -> dict[str, str] | None:
    """Read `metadata[k]=v` pairs; `metadata=null` asks for jobs without any and gives None."""
    if query.get("metadata") == "null":
        return None
    return {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in query.multi_items()
        if name.startswith("metadata[") and name.endswith("]")
    }


async def matching_jobs(
    jobs: JobStore, project: str, wanted: dict[str, str] | None, *, after: str | None, limit: int
) -> tuple[list[JobRecord], bool]:
    """List jobs, newest first, whose metadata hold every wanted pair, and tell whether there are more.

    None wants jobs without metadata.
    """
    found: list[JobRecord] = []
    more = True
    while more and len(found) <= limit:
        records, more = await jobs.list(project, after=after, limit=limit if wanted == {} else _SCAN)
        after = records[-1].id if records else after
        found += [record for record in records if _matches(record, wanted)]
        if wanted == {}:
            break
    return found[:limit], more or len(found) > limit


def _matches(record: JobRecord, wanted: dict[str, str] | None) -> bool:
    if wanted is None:
        return not record.metadata
    return wanted.items() <= (record.metadata or {}).items()
