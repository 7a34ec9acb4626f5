"""Projects, service accounts, keys and rate limits, shaped like OpenAI's organization API.

What OpenAI has no field for stands under `selftune`: scopes, and limits beyond requests and tokens per minute. Of a
limit, 0 means none, and null, or left out at creation, the server's default.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

from shared.schemas.paging import Page

Scope: TypeAlias = Literal["read", "train", "infer", "admin"]
GivenScope: TypeAlias = Literal["read", "train", "infer", "admin", "api.all.read"]
"""What clients may name: `api.all.read` is OpenAI's word for `read`."""

Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256, description="A name for people.")]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53 - 1, description="0 is no limit; null the server's default.")]
Lifetime: TypeAlias = Annotated[int, Meta(ge=1, le=10**10, description="Seconds until the key expires.")]
UnixTime: TypeAlias = Annotated[int, Meta(ge=1, le=10**11, description="Unix time in seconds.")]


class KeyLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of one key, beside those of its project; left out keeps what is there."""

    requests_per_minute: Count | UnsetType | None = UNSET
    tokens_per_minute: Count | UnsetType | None = UNSET


class ProjectLimits(KeyLimits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of all of a project's keys together; left out keeps what is there."""

    concurrent_jobs: Annotated[Count | UnsetType | None, Meta(description="Unfinished fine-tuning jobs.")] = UNSET
    storage_bytes: Annotated[Count | UnsetType | None, Meta(description="Bytes of files.")] = UNSET


class ProjectOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of this server for a project."""

    limits: ProjectLimits | None = None


class CreateProject(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/organization/projects. Data stay where this server keeps them: no other place can be chosen."""

    name: Name
    external_key_id: None = None
    geography: None = None
    residency: Literal["GLOBAL"] | None = None
    selftune: ProjectOptions | None = None


class UpdateProject(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/organization/projects/{id}; left out keeps what is there."""

    name: Name | None = None
    external_key_id: None = None
    geography: None = None
    selftune: ProjectOptions | None = None


class ProjectDetails(Struct, frozen=True, kw_only=True):
    """What this server adds to a project."""

    limits: ProjectLimits


class Project(Struct, frozen=True, kw_only=True):
    """A project: files, jobs and models that its keys share and no other key sees."""

    id: str
    object: Literal["organization.project"] = "organization.project"
    name: str
    created_at: int
    archived_at: int | None
    status: Literal["active", "archived"]
    selftune: ProjectDetails


class RateLimit(Struct, frozen=True, kw_only=True):
    """What a project may do in a minute, for all models together; 0 is no limit."""

    id: str
    object: Literal["project.rate_limit"] = "project.rate_limit"
    model: Literal["*"] = "*"
    max_requests_per_1_minute: int
    max_tokens_per_1_minute: int


class UpdateRateLimit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST …/rate_limits/{id}; left out keeps what is there."""

    max_requests_per_1_minute: Count | None = None
    max_tokens_per_1_minute: Count | None = None


class CreateServiceAccount(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST …/service_accounts."""

    name: Name
    create_service_account_only: bool | None = None
    expires_in_seconds: Lifetime | None = None


class UpdateServiceAccount(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST …/service_accounts/{id}; left out keeps what is there."""

    name: Name | None = None
    role: Literal["member", "owner"] | None = None


Role: TypeAlias = Literal["owner", "member", "none"]


class ServiceAccount(Struct, frozen=True, kw_only=True):
    """The owner of keys in a project. Its role is kept and shown; what a key may do is decided by its scopes."""

    id: str
    object: Literal["organization.project.service_account"] = "organization.project.service_account"
    name: str
    role: Role
    created_at: int


class NewKey(Struct, frozen=True, kw_only=True):
    """A service account's key with its value, which is shown this once."""

    id: str
    object: Literal["organization.project.service_account.api_key"] = "organization.project.service_account.api_key"
    name: str
    created_at: int
    expires_at: int | None
    value: str


class NewServiceAccount(ServiceAccount, frozen=True, kw_only=True):
    """A service account with its first key, unless it was made without."""

    api_key: NewKey | None


class KeyOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of this server for a key."""

    scopes: Annotated[list[GivenScope], Meta(min_length=1, max_length=8)] | None = None
    limits: KeyLimits | None = None
    expires_at: UnixTime | UnsetType | None = UNSET


class CreateServiceAccountKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST …/service_accounts/{id}/api_keys. Without scopes the key may read, train and infer."""

    name: Name | None = None
    expires_in_seconds: Lifetime | None = None
    scopes: Annotated[list[GivenScope], Meta(min_length=1, max_length=8)] | None = None


class CreateProjectKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST …/projects/{id}/api_keys, ours alone: a key, owned by a new service account of its name."""

    name: Name
    selftune: KeyOptions | None = None


class UpdateKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST …/projects/{id}/api_keys/{key_id}; left out keeps what is there."""

    expires_in_seconds: Lifetime | None = None
    scopes: Annotated[list[GivenScope], Meta(min_length=1, max_length=8)] | None = None
    selftune: KeyOptions | None = None


Grace: TypeAlias = Annotated[
    int, Meta(ge=0, le=7 * 86_400, description="Seconds for which the former value still works; 0: not at all.")
]


class RotateKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST …/api_keys/{key_id}/rotate and …/admin_api_keys/{key_id}/rotate, ours alone."""

    grace_s: Grace = 0


class KeyDetails(Struct, frozen=True, kw_only=True):
    """What this server adds to a key."""

    scopes: list[Scope]
    limits: KeyLimits


class AccountOwner(Struct, frozen=True, kw_only=True):
    """The service account that owns a key."""

    id: str
    name: str
    role: Role
    created_at: int


class KeyOwner(Struct, frozen=True, kw_only=True):
    """Who owns a project's key."""

    type: Literal["service_account"] = "service_account"
    service_account: AccountOwner


class ProjectKey(Struct, frozen=True, kw_only=True):
    """A project's key, without its value."""

    id: str
    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    name: str
    redacted_value: str
    created_at: int
    last_used_at: int | None
    expires_at: int | None
    owner: KeyOwner
    owner_project_access: Literal["active", "inactive"]
    selftune: KeyDetails


class NewProjectKey(ProjectKey, frozen=True, kw_only=True):
    """A project's key with its value, which is shown this once."""

    value: str


class CreateAdminKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/organization/admin_api_keys."""

    name: Name
    expires_in_seconds: Lifetime | None = None


class AdminOwner(Struct, frozen=True, kw_only=True):
    """The organization itself: this server knows no users."""

    id: str
    object: Literal["organization.user"] = "organization.user"
    type: Literal["user"] = "user"
    name: str
    role: Literal["owner"] = "owner"
    created_at: int


class AdminKey(Struct, frozen=True, kw_only=True):
    """A key that administers the organization, without its value."""

    id: str
    object: Literal["organization.admin_api_key"] = "organization.admin_api_key"
    name: str
    redacted_value: str
    created_at: int
    last_used_at: int | None
    expires_at: int | None
    owner: AdminOwner


class NewAdminKey(AdminKey, frozen=True, kw_only=True):
    """An admin key with its value, which is shown this once."""

    value: str


class Removed(Struct, frozen=True, kw_only=True):
    """Answer to a deletion."""

    id: str
    object: Literal[
        "organization.project.api_key.deleted",
        "organization.project.service_account.deleted",
        "organization.admin_api_key.deleted",
    ]
    deleted: Literal[True] = True


TYPES = [
    CreateProject, UpdateProject, Project, UpdateRateLimit, RateLimit, CreateServiceAccount, UpdateServiceAccount,
    ServiceAccount, NewServiceAccount, CreateServiceAccountKey, NewKey, CreateProjectKey, UpdateKey, RotateKey,
    ProjectKey, NewProjectKey, CreateAdminKey, AdminKey, NewAdminKey, Removed, Page[Project], Page[RateLimit],
    Page[ServiceAccount], Page[ProjectKey], Page[AdminKey],
]  # fmt: skip
"""Every body of these routes, for the OpenAPI document."""
