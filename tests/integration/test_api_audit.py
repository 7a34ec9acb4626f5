"""The audit log: every change has its entry before its answer is out, refusals are counted, nothing secret is in it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from services.api.audit.events import EVENTS, UNRECORDED
from services.api.routes import ROUTES
from shared import keys
from shared.audit_records import AuditRecord
from shared.store.audit import AuditStore
from shared.store.client import Client
from shared.store.registry import Registry
from tests.api_server import BASE, ApiServer, make_adapter, make_base, wait_until, with_store

LOG = "/v1/organization/audit_logs"
PROJECTS = "/v1/organization/projects"
KEYS = f"{PROJECTS}/proj_default/api_keys"
TUNED = f"ft:{BASE}:acme::AbCdEfGh"


def entries(api: ApiServer, **query: Any) -> list[dict[str, Any]]:
    with api.client() as http:
        found: list[dict[str, Any]] = http.get(LOG, params=query).raise_for_status().json()["data"]
    return found


def test_every_operation_that_changes_something_has_an_event() -> None:
    changing = {
        handler.operation_id for handler in ROUTES if not {str(one) for one in handler.http_methods} <= {"GET", "HEAD"}
    }
    assert changing == EVENTS.keys() | UNRECORDED
    assert not EVENTS.keys() & UNRECORDED


def test_a_key_from_its_making_to_its_end(api: ApiServer) -> None:
    with api.client() as http:
        made = http.post(KEYS, json={"name": "secret-looking-name"}).json()
        rotated = http.post(f"{KEYS}/{made['id']}/rotate", json={})
        http.delete(f"{KEYS}/{made['id']}")
        admin = http.get("/v1/organization/admin_api_keys").json()["data"][0]["id"]
    found = entries(api)
    assert [entry["type"] for entry in found] == ["api_key.deleted", "api_key.rotated", "api_key.created"]
    entry = found[1]
    assert entry == {
        "object": "organization.audit_log",
        "id": entry["id"],
        "type": "api_key.rotated",
        "effective_at": entry["effective_at"],
        "project": {"id": "proj_default", "name": "Default project"},
        "actor": {"type": "api_key", "api_key": {"id": admin, "type": "user"}},
        "api_key.rotated": {"id": made["id"]},
        "selftune": {
            "operation": "rotateProjectApiKey",
            "outcome": "success",
            "status": 200,
            "ip_address": "127.0.0.1",
            "request_id": rotated.headers["x-request-id"],
            "resource_ids": ["proj_default", made["id"]],
            "reason": None,
            "count": 1,
        },
    }
    assert abs(entry["effective_at"] - time.time()) < 60
    shown = str(found) + api.log.read_text()
    for secret in (made["value"], rotated.json()["value"], "secret-looking-name"):
        assert secret not in shown


def test_changes_of_a_project_and_what_changes_nothing(api: ApiServer, redis_url: str) -> None:
    with_store(redis_url, lambda client: Registry(client).put_base(make_base()))
    with_store(redis_url, lambda client: Registry(client).publish(make_adapter(TUNED)))
    with api.client() as admin:
        key = admin.post(KEYS, json={"name": "team"}).json()
    with api.client(key["value"]) as http:
        file = http.post("/v1/files", files={"file": ("a.jsonl", b"{}\n")}, data={"purpose": "fine-tune"}).json()["id"]
        job = http.post("/v1/fine_tuning/jobs", json={"model": BASE, "training_file": file}).json()["id"]
        http.post(f"/v1/fine_tuning/jobs/{job}/cancel").raise_for_status()
        http.get("/v1/files")
        assert http.post("/v1/fine_tuning/jobs", json={"model": "none", "training_file": file}).status_code == 404
        assert http.post("/v1/fine_tuning/jobs", json={"wrong": 1}).status_code == 400
        http.delete(f"/v1/models/{TUNED}").raise_for_status()
    found = entries(api, **{"actor_ids[]": key["id"]})
    assert [(entry["type"], entry["selftune"]["resource_ids"]) for entry in found] == [
        ("model.deleted", [TUNED]),
        ("fine_tuning.job.cancelled", [job]),
        ("fine_tuning.job.created", [job]),
        ("file.created", [file]),
    ]
    assert with_store(redis_url, lambda client: client.call("HLEN", keys.AUDIT_PENDING)) == 0


def test_filters_and_pages(api: ApiServer, redis_url: str) -> None:
    async def fill(client: Client) -> None:
        store = AuditStore(client)
        for number in range(1200):
            await store.add(
                AuditRecord(
                    type="file.created" if number % 100 == 0 else "file.deleted",
                    at=time.time(),
                    project=f"proj_{number % 3}",
                    key_id=f"key_{number % 2}",
                    resources=(f"file-{number}",),
                )
            )

    with_store(redis_url, fill)
    with api.client() as http:

        def get(**query: Any) -> dict[str, Any]:
            found: dict[str, Any] = http.get(LOG, params=query).raise_for_status().json()
            return found

        def named(page: dict[str, Any]) -> list[str]:
            return [entry["selftune"]["resource_ids"][0].removeprefix("file-") for entry in page["data"]]

        first = get(limit=3)
        assert named(first) == ["1199", "1198", "1197"] and first["has_more"]
        second = get(limit=2, after=first["last_id"])
        assert named(second) == ["1196", "1195"]
        assert named(get(limit=2, before=second["first_id"])) == ["1198", "1197"]
        created = {"event_types[]": "file.created"}
        assert named(get(limit=100, **created)) == [str(number) for number in range(1100, -1, -100)]
        assert named(get(limit=5, **created, **{"project_ids[]": ["proj_1", "proj_2"]})) == [
            "1100",
            "1000",
            "800",
            "700",
            "500",
        ]
        assert named(get(**{"resource_ids[]": "file-77"})) == ["77"]
        assert get(**{"actor_ids[]": "key_none"})["data"] == []
        now = int(time.time())
        assert get(**{"effective_at[gt]": now + 5})["data"] == []
        assert len(get(limit=100, **{"effective_at[gte]": now - 300, "effective_at[lt]": now + 5})["data"]) == 100
        assert get(**{"effective_at[lt]": 0})["data"] == [] and get(**{"effective_at[lte]": 0})["data"] == []
        for query, param in (({"effective_at[gt]": "soon"}, "effective_at[gt]"), ({"limit": 101}, "limit")):
            refused = http.get(LOG, params=query)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
        for place in ("audit_log-1-1", "audit_log-", "1-1", "audit_log-9999999999999999999999-1", "x" * 5000):
            for name in ("after", "before"):
                refused = http.get(LOG, params={name: place})
                assert (refused.status_code, refused.json()["error"]["param"]) == (404, name)


def test_refusals_are_counted_by_source(api: ApiServer, redis_url: str) -> None:
    with api.client() as admin:
        key = admin.post(KEYS, json={"name": "k"}).json()
        reader = admin.post(KEYS, json={"name": "r", "selftune": {"scopes": ["read"]}}).json()
        admin.delete(f"{KEYS}/{key['id']}")
    for value in (key["value"], key["value"], "sk-guess", "sk-another-guess"):
        with api.client(value) as http:
            assert http.get("/v1/models").status_code == 401
    with api.client(reader["value"]) as http:
        assert http.get(LOG).status_code == 403

    def found() -> dict[tuple[str | None, str], int]:
        refused = entries(api, **{"event_types[]": "login.failed"})
        return {(_key_of(entry), entry["selftune"]["reason"]): entry["selftune"]["count"] for entry in refused}

    wanted = {
        (key["id"], "invalid_api_key"): 1,
        (None, "invalid_api_key"): 1,
        (reader["id"], "insufficient_permissions"): 1,
    }
    wait_until(lambda: found().keys() >= wanted.keys())
    for source in wanted:
        assert found()[source] == 1, "the others of this minute are told as one entry"


def _key_of(entry: dict[str, Any]) -> str | None:
    return entry["actor"]["api_key"]["id"] if entry["actor"] else None


def test_a_change_whose_process_died_is_entered_as_unknown(redis_url: str) -> None:
    async def story(client: Client) -> None:
        store = AuditStore(client)
        slow = await store.begin(AuditRecord(type="file.created", at=time.time() - 7200))
        token = await store.begin(AuditRecord(type="file.deleted", at=time.time()))
        assert [record.type for record in await store.settle()] == ["file.created"]
        assert not await store.settle()
        await store.end(token, None)
        found, more = await store.page(lambda _: True, limit=10)
        assert [(record.type, record.outcome) for _, record in found] == [("file.created", "unknown")]
        assert not more
        await store.end(slow, AuditRecord(type="file.created", at=time.time()))  # it was only slow
        found, _ = await store.page(lambda _: True, limit=10)
        assert len(found) == 1 and await client.call("HLEN", keys.AUDIT_PENDING) == 0

    with_store(redis_url, story)


def test_what_a_dead_process_left_is_entered_without_anybody_looking(tmp_path: Path, redis_url: str) -> None:
    own = f"{redis_url}?db=1"  # the API that other tests share looks through the other database once a minute, too
    left = AuditRecord(type="file.deleted", at=time.time() - 7200, resources=("file-1",))
    with_store(own, lambda client: AuditStore(client).begin(left))
    server = ApiServer(tmp_path, own)
    try:
        wait_until(lambda: with_store(own, lambda client: client.call("XLEN", keys.AUDIT)) == 1)
        wait_until(lambda: "file.deleted" in server.log.read_text())
    finally:
        server.stop()


def test_repetitions_are_not_entered_and_tried_webhooks_are(tmp_path: Path, redis_url: str) -> None:
    server = ApiServer(tmp_path, redis_url, webhook_allow_private=True)
    with_store(redis_url, lambda client: Registry(client).put_base(make_base()))
    try:
        with server.client() as http:
            uploaded = http.post("/v1/files", files={"file": ("a.jsonl", b"{}\n")}, data={"purpose": "fine-tune"})
            body = {"model": BASE, "training_file": uploaded.json()["id"]}
            once = {"idempotency-key": "once"}
            made = [http.post("/v1/fine_tuning/jobs", json=body, headers=once).json()["id"] for _ in range(2)]
            assert made[0] == made[1]
            hook = {"name": "n", "url": "http://127.0.0.1:9/", "event_types": ["batch.completed"]}
            endpoint = http.post("/v1/webhook_endpoints", json=hook).raise_for_status().json()["id"]
            tried = http.post(f"/v1/webhook_endpoints/{endpoint}/test", json={"event_type": "batch.completed"})
            assert tried.json()["error"]["code"] == "webhook_undeliverable"
        found = [(entry["type"], entry["selftune"]["outcome"]) for entry in entries(server)]
    finally:
        server.stop()
    assert found == [
        ("webhook_endpoint.tested", "unknown"),
        ("webhook_endpoint.created", "success"),
        ("fine_tuning.job.created", "success"),
        ("file.created", "success"),
    ]


@pytest.mark.parametrize("scopes", [["read"], ["read", "train", "infer"]])
def test_only_administrators_read_it(api: ApiServer, scopes: list[str]) -> None:
    with api.client() as admin:
        key = admin.post(KEYS, json={"name": "k", "selftune": {"scopes": scopes}}).json()["value"]
    with api.client(key) as http:
        assert http.get(LOG).status_code == 403


def test_nothing_is_changed_that_cannot_be_recorded(tmp_path: Path, redis_url: str) -> None:
    server = ApiServer(tmp_path, redis_url)
    try:
        with server.client() as http:
            http.get(KEYS).raise_for_status()
            # of another type than a change's note needs: it cannot be written
            with_store(redis_url, lambda client: client.call("SET", keys.AUDIT_PENDING, "in the way"))
            refused = http.post(KEYS, json={"name": "k"})
            listed = http.get(KEYS).json()["data"]
    finally:
        server.stop()
    assert refused.status_code == 500 and listed == []
