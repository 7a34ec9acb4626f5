"""What is stored of projects and service accounts. Reading is tolerant, as in records.py."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, structs

from shared.schemas.organization import (
    AccountOwner,
    KeyLimits,
    Project,
    ProjectDetails,
    ProjectLimits,
    Role,
    Scope,
    ServiceAccount,
)

ALL_SCOPES: tuple[Scope, ...] = ("read", "train", "infer", "admin")
USUAL_SCOPES: tuple[Scope, ...] = ("read", "train", "infer")
"""Of a key that names none: whoever can make keys for a project has not made one that rules the organization."""


class Limits(Struct, frozen=True, kw_only=True):
    """Most that a key or a project may have; None means the default, 0 no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_jobs: int | None = None
    """Of projects only."""
    storage_bytes: int | None = None
    """Of projects only."""

    def changed(self, given: KeyLimits | None) -> Limits:
        """Return the limits with those that are given replaced."""
        if given is None:
            return self
        fields = structs.asdict(given)
        return structs.replace(self, **{name: value for name, value in fields.items() if value is not UNSET})

    def over(self, defaults: Limits) -> Limits:
        """Return the limits with the default wherever none is set."""
        chosen: dict[str, Any] = {
            name: default if (own := getattr(self, name)) is None else own
            for name, default in structs.asdict(defaults).items()
        }
        return Limits(**chosen)

    def of_key(self) -> KeyLimits:
        return KeyLimits(requests_per_minute=self.requests_per_minute, tokens_per_minute=self.tokens_per_minute)

    def of_project(self) -> ProjectLimits:
        return ProjectLimits(**structs.asdict(self))


class ProjectRecord(Struct, frozen=True, kw_only=True):
    """A project; archived, it keeps its data and refuses its keys, for ever."""

    id: str
    name: str
    created_at: int
    archived_at: int | None = None
    limits: Limits = Limits()

    def public(self) -> Project:
        return Project(
            id=self.id,
            name=self.name,
            created_at=self.created_at,
            archived_at=self.archived_at,
            status="active" if self.archived_at is None else "archived",
            selftune=ProjectDetails(limits=self.limits.of_project()),
        )


class ServiceAccountRecord(Struct, frozen=True, kw_only=True):
    """The owner of keys in a project."""

    id: str
    project: str
    name: str
    role: Role = "member"
    created_at: int

    def public(self) -> ServiceAccount:
        return ServiceAccount(id=self.id, name=self.name, role=self.role, created_at=self.created_at)

    def owner(self) -> AccountOwner:
        return AccountOwner(id=self.id, name=self.name, role=self.role, created_at=self.created_at)
