"""Projects, service accounts and keys through the real SDK; scopes, expiry, revocation, and walls between projects."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest

from shared.records import FileRecord
from shared.schemas.organization import Scope
from shared.store.client import Client
from shared.store.files import FileStore
from shared.store.registry import Registry
from tests.api_server import BASE, ApiServer, make_adapter, make_base, with_store

PROJECTS = "/v1/organization/projects"
ADMIN_KEYS = "/v1/organization/admin_api_keys"
LINES = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n' * 12


@pytest.fixture
def admin(api: ApiServer) -> openai.OpenAI:
    """The SDK with the admin key, refusing answers that are not of its types."""
    return openai.OpenAI(
        base_url=f"{api.url}/v1", api_key="none", admin_api_key=api.key, max_retries=0,
        _strict_response_validation=True,
    )  # fmt: skip


def sdk(api: ApiServer, key: str, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=key, max_retries=0, **options)


def new_key(api: ApiServer, project: str = "proj_default", **options: Any) -> dict[str, Any]:
    with api.client() as http:
        answer = http.post(f"{PROJECTS}/{project}/api_keys", json={"name": "k", "selftune": options})
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def error_of(answer: httpx2.Response) -> tuple[int, str | None, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def test_projects_through_the_sdk(admin: openai.OpenAI) -> None:
    projects = admin.admin.organization.projects
    default = projects.retrieve("proj_default")
    assert (default.status, default.object, default.archived_at) == ("active", "organization.project", None)
    made = [projects.create(name=f"team {number}") for number in range(3)]
    assert made[0].name == "team 0" and made[0].id.startswith("proj_")
    assert projects.update(made[0].id, name="renamed").name == "renamed"
    assert projects.retrieve(made[0].id).name == "renamed"
    archived = projects.archive(made[1].id)
    assert archived.status == "archived" and archived.archived_at is not None
    assert projects.archive(made[1].id) == archived
    assert [project.id for project in projects.list(limit=1)] == [made[2].id, made[0].id, "proj_default"]
    assert len(list(projects.list(include_archived=True))) == 4


def test_service_accounts_through_the_sdk(api: ApiServer, admin: openai.OpenAI) -> None:
    project = admin.admin.organization.projects.create(name="team").id
    accounts = admin.admin.organization.projects.service_accounts
    made = accounts.create(project, name="ci", expires_in_seconds=3600)
    assert made.api_key is not None and made.api_key.expires_at is not None and made.role == "member"
    assert made.api_key.object == "organization.project.service_account.api_key"
    assert abs(made.api_key.expires_at - time.time() - 3600) < 60
    sdk(api, made.api_key.value).models.list()
    bare = accounts.create(project, name="bare", create_service_account_only=True)
    assert (bare.api_key, bare.role) == (None, "none")
    second = accounts.api_keys.create(bare.id, project_id=project, name="later", scopes=["api.all.read"])
    sdk(api, second.value).models.list()
    assert accounts.retrieve(bare.id, project_id=project).name == "bare"
    changed = accounts.update(bare.id, project_id=project, name="better", role="owner")
    assert (changed.name, changed.role) == ("better", "owner")
    assert [account.name for account in accounts.list(project, limit=1)] == ["better", "ci"]
    deleted = accounts.delete(made.id, project_id=project)
    assert deleted.deleted and deleted.object == "organization.project.service_account.deleted"
    with pytest.raises(openai.AuthenticationError):
        sdk(api, made.api_key.value).models.list()
    sdk(api, second.value).models.list()
    names = [key.name for key in admin.admin.organization.projects.api_keys.list(project)]
    assert names == ["later"]


def test_project_keys_through_the_sdk(api: ApiServer, admin: openai.OpenAI) -> None:
    project = admin.admin.organization.projects.create(name="team").id
    keys = admin.admin.organization.projects.api_keys
    account = admin.admin.organization.projects.service_accounts.create(project, name="ci")
    assert account.api_key is not None
    other = new_key(api, project, scopes=["read"])
    assert [key.id for key in keys.list(project, limit=1)] == [other["id"], account.api_key.id]
    assert list(keys.list(project, owner_project_access="inactive")) == []
    shown = keys.retrieve(account.api_key.id, project_id=project)
    assert shown.object == "organization.project.api_key" and shown.owner.type == "service_account"
    assert shown.owner.service_account is not None and shown.owner.service_account.id == account.id
    assert shown.redacted_value.endswith(account.api_key.value[-4:]) and len(shown.redacted_value) < 25
    assert (shown.last_used_at, shown.owner_project_access) == (None, "active")
    sdk(api, account.api_key.value).models.list()
    used = keys.retrieve(account.api_key.id, project_id=project).last_used_at
    assert used is not None and abs(used - time.time()) < 60
    changed = keys.update(account.api_key.id, project_id=project, scopes=["api.all.read"], expires_in_seconds=60)
    assert changed.expires_at is not None and changed.to_dict()["selftune"]["scopes"] == ["read"]  # type: ignore[index]
    with pytest.raises(openai.BadRequestError, match="scopes"):
        keys.update(other["id"], project_id=project, scopes=[])  # not a way to the usual ones, which are more
    deleted = keys.delete(account.api_key.id, project_id=project)
    assert deleted.deleted and deleted.object == "organization.project.api_key.deleted"
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        sdk(api, account.api_key.value).models.list()
    with pytest.raises(openai.NotFoundError):
        keys.delete(account.api_key.id, project_id=project)


def test_admin_keys_through_the_sdk(api: ApiServer, admin: openai.OpenAI) -> None:
    keys = admin.admin.organization.admin_api_keys
    made = keys.create(name="ops", expires_in_seconds=3600)
    assert made.object == "organization.admin_api_key" and made.value.startswith("sk-")
    theirs = openai.OpenAI(base_url=f"{api.url}/v1", api_key="none", admin_api_key=made.value, max_retries=0)
    theirs.admin.organization.projects.list()
    with pytest.raises(openai.PermissionDeniedError, match="Missing scopes: read"):
        sdk(api, made.value).models.list()
    built_in, listed = keys.list(limit=1)
    assert (built_in.name, listed.id) == ("test", made.id)
    assert [key.id for key in keys.list(order="desc")] == [made.id, built_in.id]
    shown = keys.retrieve(made.id)
    assert shown.last_used_at is not None and "value" not in shown.to_dict()
    with pytest.raises(openai.BadRequestError, match="own admin key") as caught:
        keys.delete(built_in.id)
    assert caught.value.code == "built_in_key"
    assert keys.delete(made.id).deleted
    with pytest.raises(openai.AuthenticationError):
        theirs.admin.organization.projects.list()
    admin.admin.organization.projects.list()


def test_accounts_and_keys_are_deleted_while_they_are_listed(api: ApiServer, admin: openai.OpenAI) -> None:
    organization = admin.admin.organization
    project = organization.projects.create(name="team").id
    accounts, keys = organization.projects.service_accounts, organization.projects.api_keys
    made = []
    for number in range(6):
        made.append(new_key(api, project)["id"])
        organization.admin_api_keys.create(name=str(number))
    seen = []
    for key in keys.list(project, limit=2):
        keys.delete(key.id, project_id=project)
        seen.append(key.id)
    assert seen == made[::-1]
    made = [account.id for account in accounts.list(project)]
    seen = []
    for account in accounts.list(project, limit=2):
        accounts.delete(account.id, project_id=project)
        seen.append(account.id)
    assert seen == made and len(made) == 6
    names = []
    for admin_key in organization.admin_api_keys.list(limit=2, order="desc"):
        if admin_key.name != "test":
            organization.admin_api_keys.delete(admin_key.id)
        names.append(admin_key.name)
    assert names == ["5", "4", "3", "2", "1", "0", "test"]


def test_key_that_goes_with_its_account_is_still_a_place(api: ApiServer, admin: openai.OpenAI) -> None:
    projects = admin.admin.organization.projects
    project, other = projects.create(name="team").id, projects.create(name="other").id
    older = new_key(api, project)["id"]
    account = projects.service_accounts.create(project, name="ci")
    assert account.api_key is not None
    projects.service_accounts.delete(account.id, project_id=project)
    assert [key.id for key in projects.api_keys.list(project, after=account.api_key.id)] == [older]
    with pytest.raises(openai.NotFoundError):
        projects.api_keys.list(other, after=account.api_key.id)


def test_rate_limits_through_the_sdk(admin: openai.OpenAI) -> None:
    project = admin.admin.organization.projects.create(name="team").id
    limits = admin.admin.organization.projects.rate_limits
    (only,) = limits.list_rate_limits(project)
    assert (only.model, only.max_requests_per_1_minute, only.object) == ("*", 0, "project.rate_limit")
    changed = limits.update_rate_limit(only.id, project_id=project, max_tokens_per_1_minute=5000)
    assert (changed.max_requests_per_1_minute, changed.max_tokens_per_1_minute) == (0, 5000)
    assert list(limits.list_rate_limits(project)) == [changed]
    with pytest.raises(openai.NotFoundError):
        limits.update_rate_limit("rl-other", project_id=project, max_tokens_per_1_minute=1)


def test_limits_of_a_project_are_kept_one_by_one(api: ApiServer) -> None:
    with api.client() as http:
        made = http.post(PROJECTS, json={"name": "t", "selftune": {"limits": {"storage_bytes": 7}}}).json()
        for change in ({"concurrent_jobs": 2}, {"storage_bytes": None}):
            made = http.post(f"{PROJECTS}/{made['id']}", json={"selftune": {"limits": change}}).json()
    assert made["name"] == "t" and made["selftune"]["limits"] == {
        "requests_per_minute": None, "tokens_per_minute": None, "concurrent_jobs": 2, "storage_bytes": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        (PROJECTS, {}, "missing_required_parameter", "name"),
        (PROJECTS, {"name": None}, "invalid_value", "name"),
        (PROJECTS, {"name": ""}, "invalid_value", "name"),
        (PROJECTS, {"name": "x" * 257}, "invalid_value", "name"),
        (PROJECTS, {"name": 7}, "invalid_value", "name"),
        (PROJECTS, {"name": "a", "colour": 1}, "unknown_parameter", "colour"),
        (PROJECTS, {"name": "a", "geography": "EU"}, "invalid_value", "geography"),
        (PROJECTS, {"name": "a", "residency": "EU_STORAGE"}, "invalid_value", "residency"),
        (PROJECTS, {"name": "a", "selftune": {"limits": {"jobs": 1}}}, "unknown_parameter", "selftune.limits.jobs"),
        (
            PROJECTS, {"name": "a", "selftune": {"limits": {"storage_bytes": -1}}}, "invalid_value",
            "selftune.limits.storage_bytes",
        ),
        (
            PROJECTS, {"name": "a", "selftune": {"limits": {"storage_bytes": 10**30}}}, "invalid_value",
            "selftune.limits.storage_bytes",
        ),
        (f"{PROJECTS}/proj_default", {"name": 1}, "invalid_value", "name"),
        (f"{PROJECTS}/proj_default/rate_limits/rl-proj_default", {"max_requests_per_1_minute": 1.5}, "invalid_value",
         "max_requests_per_1_minute"),
        (f"{PROJECTS}/proj_default/rate_limits/rl-proj_default", {"max_requests_per_1_day": 1}, "unknown_parameter",
         "max_requests_per_1_day"),
        (f"{PROJECTS}/proj_default/service_accounts", {}, "missing_required_parameter", "name"),
        (f"{PROJECTS}/proj_default/service_accounts", {"name": "a", "expires_in_seconds": 0}, "invalid_value",
         "expires_in_seconds"),
        (
            f"{PROJECTS}/proj_default/service_accounts",
            {"name": "a", "create_service_account_only": True, "expires_in_seconds": 9}, None, "expires_in_seconds",
        ),
        (f"{PROJECTS}/proj_default/api_keys", {"name": "a", "selftune": {"scopes": ["root"]}}, "invalid_value",
         "selftune.scopes[0]"),
        (f"{PROJECTS}/proj_default/api_keys", {"name": "a", "selftune": {"expires_at": 1000}}, "invalid_value",
         "selftune.expires_at"),
        (f"{PROJECTS}/proj_default/api_keys", {"name": "a", "selftune": {"limits": {"concurrent_jobs": 1}}},
         "unknown_parameter", "selftune.limits.concurrent_jobs"),
        (ADMIN_KEYS, {"name": "a", "expires_in_seconds": "1"}, "invalid_value", "expires_in_seconds"),
        (f"{PROJECTS}/proj_default/archive", None, "default_project", "project_id"),
    ],
)  # fmt: skip
def test_bad_bodies_are_refused_by_field(
    api: ApiServer, path: str, body: object, code: str | None, param: str | None
) -> None:
    with api.client() as http:
        before = [http.get(place).json()["data"] for place in (PROJECTS, f"{PROJECTS}/proj_default/service_accounts")]
        assert error_of(http.post(path, json=body)) == (400, code, param)
        after = [http.get(place).json()["data"] for place in (PROJECTS, f"{PROJECTS}/proj_default/service_accounts")]
    assert before == after


def test_unknown_and_foreign_ids_look_the_same(api: ApiServer) -> None:
    with api.client() as http:
        mine, other = (http.post(PROJECTS, json={"name": name}).json()["id"] for name in "ab")
        account = http.post(f"{PROJECTS}/{mine}/service_accounts", json={"name": "ci"}).json()
        operator = http.get(ADMIN_KEYS).json()["data"][0]["id"]
        key = account["api_key"]["id"]
        for method, path, param in (
            ("GET", "proj_no", "project_id"),
            ("POST", "proj_no/archive", "project_id"),
            ("GET", "proj_no/api_keys", "project_id"),
            ("GET", "proj_no/service_accounts", "project_id"),
            ("GET", "proj_no/rate_limits", "project_id"),
            ("GET", f"{other}/service_accounts/{account['id']}", "service_account_id"),
            ("DELETE", f"{other}/service_accounts/{account['id']}", "service_account_id"),
            ("GET", f"{other}/api_keys/{key}", "key_id"),
            ("DELETE", f"{other}/api_keys/{key}", "key_id"),
            ("DELETE", f"{mine}/api_keys/{operator}", "key_id"),
            ("DELETE", f"../admin_api_keys/{key}", "key_id"),
        ):
            assert error_of(http.request(method, f"{PROJECTS}/{path}")) == (404, None, param), path
        for path in (f"{other}/api_keys/{key}", f"{other}/service_accounts/{account['id']}"):
            assert http.post(f"{PROJECTS}/{path}", json={}).status_code == 404
    sdk(api, account["api_key"]["value"]).models.list()


Call = Callable[[openai.OpenAI], object]
CALLS: dict[str, tuple[Scope, Call]] = {
    "list files": ("read", lambda client: client.files.list()),
    "list jobs": ("read", lambda client: client.fine_tuning.jobs.list()),
    "list models": ("read", lambda client: client.models.list()),
    "upload": ("train", lambda client: client.files.create(file=("a.jsonl", LINES), purpose="fine-tune")),
    "delete a file": ("train", lambda client: client.files.delete("file-x")),
    "train": ("train", lambda client: client.fine_tuning.jobs.create(model="m", training_file="file-x")),
    "delete a model": ("train", lambda client: client.models.delete("m")),
    "chat": ("infer", lambda client: client.chat.completions.create(model="m", messages=[])),
    "complete": ("infer", lambda client: client.completions.create(model="m", prompt="x")),
    "permit": (
        "admin",
        lambda client: client.fine_tuning.checkpoints.permissions.create("m", project_ids=["proj_default"]),
    ),
    "administer": ("admin", lambda client: client.admin.organization.projects.list()),
}


def test_scopes_open_their_routes_and_no_others(api: ApiServer) -> None:
    scopes: tuple[Scope, ...] = ("read", "train", "infer", "admin")
    for granted in scopes:
        key = new_key(api, scopes=[granted])["value"]
        client = sdk(api, key, admin_api_key=key)
        for name, (scope, call) in CALLS.items():
            try:
                call(client)
                allowed = True
            except openai.PermissionDeniedError as error:
                assert error.code == "insufficient_permissions"
                assert f"Missing scopes: {scope}." in error.message
                allowed = False
            except (openai.NotFoundError, openai.BadRequestError):
                allowed = True
            assert allowed == (scope == granted), (granted, name)


def test_key_made_without_scopes_does_not_administer(api: ApiServer) -> None:
    made = new_key(api)
    assert made["selftune"]["scopes"] == ["read", "train", "infer"]
    with api.client(made["value"]) as http:
        assert error_of(http.get(PROJECTS)) == (403, "insufficient_permissions", None)


def test_expired_key_is_refused_like_an_unknown_one(api: ApiServer) -> None:
    made = new_key(api, expires_at=int(time.time()) + 2)
    with api.client(made["value"]) as http:
        assert http.get("/v1/models").status_code == 200
        deadline = time.monotonic() + 10
        while (answer := http.get("/v1/models")).status_code == 200:
            assert time.monotonic() < deadline
    assert error_of(answer) == (401, "invalid_api_key", None)
    with api.client() as http:
        change = http.post(f"{PROJECTS}/proj_default/api_keys/{made['id']}", json={"expires_in_seconds": 60})
    assert change.status_code == 400 and "has expired" in change.json()["error"]["message"]


def test_archived_project_refuses_its_keys_and_keeps_its_data(
    api: ApiServer, admin: openai.OpenAI, redis_url: str
) -> None:
    project = admin.admin.organization.projects.create(name="team").id
    made = new_key(api, project)
    file = sdk(api, made["value"]).files.create(file=("a.jsonl", LINES), purpose="fine-tune")
    admin.admin.organization.projects.archive(project)
    with pytest.raises(openai.AuthenticationError, match=f"{project} .* is archived") as caught:
        sdk(api, made["value"]).files.list()
    assert caught.value.code == "project_archived"
    kept = with_store(redis_url, lambda client: FileStore(client).get(file.id, project=project))
    assert isinstance(kept, FileRecord) and api.paths.file_content(file.id).is_file()
    with api.client() as http:
        for path, body in (
            ("api_keys", {"name": "a"}),
            ("service_accounts", {"name": "a"}),
            (f"api_keys/{made['id']}", {"expires_in_seconds": 9}),
            (f"rate_limits/rl-{project}", {"max_requests_per_1_minute": 9}),
        ):
            assert error_of(http.post(f"{PROJECTS}/{project}/{path}", json=body)) == (
                400, "project_archived", "project_id",
            )  # fmt: skip
        (shown,) = http.get(f"{PROJECTS}/{project}/api_keys").json()["data"]
        assert shown["owner_project_access"] == "inactive"
        assert http.delete(f"{PROJECTS}/{project}/api_keys/{made['id']}").status_code == 200


def test_projects_do_not_see_each_other(api: ApiServer, admin: openai.OpenAI, redis_url: str) -> None:
    mine, other = (admin.admin.organization.projects.create(name=name).id for name in "ab")
    tuned = f"ft:{BASE}:acme:x:AbCdEfGh"

    async def fill(client: Client) -> None:
        await Registry(client).put_base(make_base())
        await Registry(client).publish(make_adapter(tuned, project=mine))

    with_store(redis_url, fill)
    owner, stranger = (sdk(api, new_key(api, project)["value"]) for project in (mine, other))
    file = owner.files.create(file=("a.jsonl", LINES), purpose="fine-tune")
    job = owner.fine_tuning.jobs.create(model=BASE, training_file=file.id)
    assert [model.id for model in owner.models.list()] == [BASE, tuned]
    assert [model.id for model in stranger.models.list()] == [BASE]
    assert list(stranger.files.list()) == [] and list(stranger.fine_tuning.jobs.list()) == []
    refused: list[Callable[[], object]] = [
        lambda: stranger.files.retrieve(file.id),
        lambda: stranger.files.content(file.id),
        lambda: stranger.files.delete(file.id),
        lambda: stranger.fine_tuning.jobs.create(model=BASE, training_file=file.id),
        lambda: stranger.fine_tuning.jobs.create(model=tuned, training_file=file.id),
        lambda: stranger.fine_tuning.jobs.retrieve(job.id),
        lambda: stranger.fine_tuning.jobs.cancel(job.id),
        lambda: stranger.fine_tuning.jobs.pause(job.id),
        lambda: stranger.fine_tuning.jobs.resume(job.id),
        lambda: stranger.fine_tuning.jobs.list_events(job.id),
        lambda: stranger.fine_tuning.jobs.checkpoints.list(job.id),
        lambda: stranger.models.retrieve(tuned),
        lambda: stranger.models.delete(tuned),
        lambda: stranger.chat.completions.create(model=tuned, messages=[{"role": "user", "content": "x"}]),
        lambda: stranger.files.list(after=file.id).data,
        lambda: stranger.fine_tuning.jobs.list(after=job.id).data,
    ]
    for call in refused:
        with pytest.raises(openai.NotFoundError):
            call()
    assert owner.fine_tuning.jobs.retrieve(job.id).status == "validating_files"


@pytest.mark.parametrize(
    "headers",
    [
        {"openai-organization": "org-acme", "openai-project": "proj_default"},
        {"openai-organization": "org-of-openai", "openai-project": "proj_of_openai"},
        {"openai-project": "a:b c"},
    ],
)
def test_ids_of_another_place_are_ignored(api: ApiServer, headers: dict[str, str]) -> None:
    with api.client() as http:
        assert http.get("/v1/models", headers=headers).status_code == 200


def test_another_project_of_this_server_is_refused(api: ApiServer, admin: openai.OpenAI) -> None:
    other = admin.admin.organization.projects.create(name="other").id
    with pytest.raises(openai.AuthenticationError, match="OpenAI-Project header") as caught:
        sdk(api, api.key, project=other).models.list()
    assert caught.value.code == "mismatched_project"
    sdk(api, api.key, project="proj_default", organization="acme").models.list()


def test_keys_are_known_while_the_database_takes_no_changes(api: ApiServer, redis_url: str) -> None:
    key = new_key(api)["value"]
    with_store(redis_url, lambda client: client.call("CONFIG", "SET", "maxmemory", 1))
    try:
        with api.client(key) as http:
            assert http.get("/v1/models").status_code == 200
            refused = http.post("/v1/files", files={"file": ("a", b"x"), "purpose": (None, "batch")})
        assert error_of(refused) == (503, "store_unavailable", None)
    finally:
        with_store(redis_url, lambda client: client.call("CONFIG", "SET", "maxmemory", 0))


def test_no_key_is_in_the_database_or_the_log(api: ApiServer, admin: openai.OpenAI, redis_url: str) -> None:
    values = [new_key(api)["value"], admin.admin.organization.admin_api_keys.create(name="x").value]
    account = admin.admin.organization.projects.service_accounts.create("proj_default", name="ci")
    assert account.api_key is not None
    values.append(account.api_key.value)
    for value in values:
        with api.client(value) as http:
            http.get("/v1/models")

    async def everything(client: Client) -> bytes:
        names = await client.call("KEYS", "*")
        kinds = [await client.call("TYPE", name) for name in names]
        texts = [await client.call("GET", name) for name, kind in zip(names, kinds, strict=True) if kind == b"string"]
        return b"".join([*names, *texts])

    stored = with_store(redis_url, everything)
    log = api.log.read_text()
    for value in values:
        secret = value.removeprefix("sk-selftune-")[:-4]
        assert secret.encode() not in stored and secret not in log
