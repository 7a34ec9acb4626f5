"""Administration of projects and of what they may do in a minute, or at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from shared.errors import InvalidRequest, NotFound
from shared.projects import Limits, ProjectRecord
from shared.records import DEFAULT_PROJECT
from shared.schemas import organization as wire
from shared.settings import Settings
from shared.store.projects import ProjectStore, without_record

_log = structlog.get_logger()


class ProjectAdmin:
    """Every method raises NotFound for a project that is unknown, and InvalidRequest to change one that is archived."""

    def __init__(self, settings: Settings, projects: ProjectStore) -> None:
        self._default_limits = Limits(
            requests_per_minute=settings.project_requests_per_minute,
            tokens_per_minute=settings.project_tokens_per_minute,
            concurrent_jobs=settings.project_concurrent_jobs,
        )
        self._projects = projects

    async def get(self, project_id: str) -> ProjectRecord:
        return await self._projects.get(project_id)

    async def list(
        self, *, after: str | None, limit: int, include_archived: bool
    ) -> tuple[Sequence[ProjectRecord], bool]:
        return await self._projects.list(after=after, limit=limit, include_archived=include_archived)

    async def create(self, wanted: wire.CreateProject) -> ProjectRecord:
        options = wanted.selftune or wire.ProjectOptions()
        record = await self._projects.create(wanted.name, Limits().changed(options.limits))
        _log.info("project.created", project=record.id)
        return record

    async def update(self, project_id: str, wanted: wire.UpdateProject) -> ProjectRecord:
        limits = wanted.selftune.limits if wanted.selftune else None

        def change(current: ProjectRecord) -> ProjectRecord:
            check_active(current)
            return replace(current, name=wanted.name or current.name, limits=current.limits.changed(limits))

        return await self._projects.update(project_id, change)

    async def archive(self, project_id: str) -> ProjectRecord:
        """End a project for good: its keys stop working at once, its data stay. Twice is the same as once."""
        if project_id == DEFAULT_PROJECT:
            raise InvalidRequest(
                "The default project cannot be archived: the server's own admin key belongs to it.",
                code="default_project",
                param="project_id",
            )

        def change(current: ProjectRecord) -> ProjectRecord:
            return current if current.archived_at else replace(current, archived_at=int(time.time()))

        record = await self._projects.update(project_id, change)
        _log.info("project.archived", project=project_id)
        return record

    async def job_limit(self, project_id: str) -> int | None:
        """Return how many unfinished jobs a project may have; None where there is no limit."""
        try:
            project = await self._projects.get(project_id)
        except NotFound:
            project = without_record(project_id)
        return project.limits.over(self._default_limits).concurrent_jobs or None

    async def rate_limit(self, project_id: str) -> wire.RateLimit:
        return self._shown_limit(await self._projects.get(project_id))

    async def update_rate_limit(self, project_id: str, limit_id: str, wanted: wire.UpdateRateLimit) -> wire.RateLimit:
        """Set what a project may do in a minute; the one limit there is covers all models."""
        current = await self.rate_limit(project_id)
        if limit_id != current.id:
            raise NotFound(f"No such rate limit: {limit_id}; this project's is {current.id}.", param="rate_limit_id")
        limits = wire.ProjectLimits(
            requests_per_minute=_unset_if_none(wanted.max_requests_per_1_minute),
            tokens_per_minute=_unset_if_none(wanted.max_tokens_per_1_minute),
        )
        change = wire.UpdateProject(selftune=wire.ProjectOptions(limits=limits))
        return self._shown_limit(await self.update(project_id, change))

    def _shown_limit(self, project: ProjectRecord) -> wire.RateLimit:
        limits = project.limits.over(self._default_limits)
        return wire.RateLimit(
            id=f"rl-{project.id}",
            max_requests_per_1_minute=limits.requests_per_minute or 0,
            max_tokens_per_1_minute=limits.tokens_per_minute or 0,
        )


def check_active(project: ProjectRecord) -> None:
    """Raises InvalidRequest for a project that is archived."""
    if project.archived_at is not None:
        raise InvalidRequest(
            f"The project {project.id} is archived and cannot be changed.", code="project_archived", param="project_id"
        )


def _unset_if_none(value: int | None) -> int | UnsetType:
    return UNSET if value is None else value
