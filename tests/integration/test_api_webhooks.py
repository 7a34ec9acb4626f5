"""Webhooks: endpoints through the SDK, deliveries to a real receiver, and addresses that are never asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import openai
import pytest
import redis

from shared import keys
from shared.records import JobRecord
from shared.schemas.methods import SupervisedHyperparameters
from shared.schemas.webhooks import EVENT_TYPES
from shared.states import JobState
from shared.store.jobs import JobStore
from shared.store.webhooks import MAX_ENDPOINTS
from tests.api_server import ApiServer, know_key, wait_until, with_store
from tests.webhook_receiver import Received, Receiver, receiver

SUCCEEDED: Final = "fine_tuning.job.succeeded"
FAILED: Final = "fine_tuning.job.failed"


def _database(valkey_folder: Path, number: int) -> str:
    """A database that no other API process of these tests looks at: each delivers what it finds."""
    return f"unix://{valkey_folder / 'valkey.sock'}?db={number}"


def _emptied(url: str) -> str:
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def open_url(valkey_folder: Path) -> str:
    """URL of the empty database of `open_process`."""
    return _emptied(_database(valkey_folder, 1))


@pytest.fixture
def lone_url(valkey_folder: Path) -> str:
    """URL of an empty database that nobody delivers from."""
    return _emptied(_database(valkey_folder, 2))


@pytest.fixture(scope="module")
def open_process(valkey_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API that may deliver to this machine, and tries again soon."""
    url = _database(valkey_folder, 1)
    server = ApiServer(tmp_path_factory.mktemp("api"), url, webhook_allow_private=True, webhook_retry_base_s=0.05)
    yield server
    server.stop()


@pytest.fixture
def open_api(open_process: ApiServer, open_url: str) -> ApiServer:
    know_key(open_url, open_process.key)
    return open_process


@pytest.fixture
def target() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


def sdk_of(api: ApiServer, key: str | None = None) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=key or api.key, max_retries=0)


def end_job(open_url: str, job_id: str, status: JobState, *, project: str = "proj_default") -> None:
    record = JobRecord(
        id=job_id, project=project, organization="acme", created_at=1, model="m", training_file="file-x", seed=0,
        requested=SupervisedHyperparameters(), model_name="ft:m:acme::x", status=JobState.RUNNING,
    )  # fmt: skip
    with_store(open_url, lambda client: JobStore(client).create(record, []))
    with_store(open_url, lambda client: JobStore(client).finish(job_id, status))


def nothing_is_due(open_url: str) -> bool:
    with redis.Redis.from_url(open_url) as client:
        return not client.exists(keys.OUTCOMES, keys.WEBHOOK_QUEUE)


def unwrapped(received: Received, secret: str) -> dict[str, Any]:
    event = openai.OpenAI(api_key="none").webhooks.unwrap(received.body, received.headers, secret=secret)
    return event.to_dict()


def test_endpoint_from_creation_to_deletion(open_api: ApiServer) -> None:
    webhooks = sdk_of(open_api).webhooks
    created = webhooks.create(name="ends", url="https://example.com/a?b=c", event_types=[SUCCEEDED, FAILED, FAILED])
    assert created.signing_secret.startswith("whsec_")
    shown = webhooks.retrieve(created.id).to_dict()
    assert shown == {
        "id": created.id, "object": "webhook_endpoint", "name": "ends", "url": "https://example.com/a?b=c",
        "event_types": [SUCCEEDED, FAILED], "created_at": created.created_at, "updated_at": created.created_at,
        "signing_secret_hint": f"whsec_...{created.signing_secret[-4:]}",
    }  # fmt: skip
    updated = webhooks.update(created.id, name="other", event_types=[SUCCEEDED])
    assert (updated.name, updated.url, updated.event_types) == ("other", created.url, [SUCCEEDED])
    rotated = webhooks.rotate_secret(created.id)
    assert rotated.signing_secret != created.signing_secret
    assert webhooks.delete(created.id).to_dict() == {
        "id": created.id, "object": "webhook_endpoint.deleted", "deleted": True,
    }  # fmt: skip
    with pytest.raises(openai.NotFoundError):
        webhooks.retrieve(created.id)
    assert webhooks.event_types.list().data == list(EVENT_TYPES)


def test_list_is_paged_newest_first_and_limited(open_api: ApiServer) -> None:
    webhooks = sdk_of(open_api).webhooks
    made = [webhooks.create(name=str(n), url="https://example.com/", event_types=[FAILED]).id for n in range(5)]
    assert [item.id for item in webhooks.list(limit=2)] == made[::-1]
    assert webhooks.list(limit=2).has_more
    with pytest.raises(openai.NotFoundError):
        webhooks.list(after="we_none")
    for n in range(MAX_ENDPOINTS - 5):
        webhooks.create(name=str(n), url="https://example.com/", event_types=[FAILED])
    with pytest.raises(openai.BadRequestError, match="which is the limit"):
        webhooks.create(name="one more", url="https://example.com/", event_types=[FAILED])


def test_endpoints_are_deleted_while_they_are_listed(open_api: ApiServer) -> None:
    webhooks = sdk_of(open_api).webhooks
    made = [webhooks.create(name=str(n), url="https://example.com/", event_types=[FAILED]).id for n in range(5)]
    seen = []
    for endpoint in webhooks.list(limit=2):
        webhooks.delete(endpoint.id)
        seen.append(endpoint.id)
    assert seen == made[::-1]


GOOD = {"name": "n", "url": "https://example.com/", "event_types": [SUCCEEDED]}


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"name": ""}, "name", "invalid_value"),
        ({"name": None}, "name", "invalid_value"),
        ({"name": "x" * 257}, "name", "invalid_value"),
        ({"url": 5}, "url", "invalid_value"),
        ({"url": ""}, "url", "invalid_value"),
        ({"url": "ftp://example.com"}, "url", "invalid_value"),
        ({"url": "https://u:p@example.com/"}, "url", "invalid_value"),
        ({"url": "https://" + "x" * 2048}, "url", "invalid_value"),
        ({"event_types": []}, "event_types", "invalid_value"),
        ({"event_types": None}, "event_types", "invalid_value"),
        ({"event_types": SUCCEEDED}, "event_types", "invalid_value"),
        ({"event_types": [5]}, "event_types[0]", "invalid_value"),
        ({"event_types": [SUCCEEDED, "response.completed"]}, "event_types[1]", "invalid_value"),
        ({"event_types": [SUCCEEDED] * 65}, "event_types", "invalid_value"),
        ({"colour": 1}, "colour", "unknown_parameter"),
    ],
)
@pytest.mark.parametrize("update", [False, True])
def test_bad_fields_are_named(
    open_api: ApiServer, changes: dict[str, Any], param: str, code: str, update: bool
) -> None:
    with open_api.client() as http:
        made = http.post("/v1/webhook_endpoints", json=GOOD).json()
        path = f"/v1/webhook_endpoints/{made['id']}" if update else "/v1/webhook_endpoints"
        answer = http.post(path, json=changes if update else {**GOOD, **changes})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, code)
        assert error["param"] in (param, param.partition("[")[0])
        listed = http.get("/v1/webhook_endpoints").json()["data"]
    assert [item["name"] for item in listed] == ["n"]


def test_unoffered_events_are_answered_with_those_offered(open_api: ApiServer) -> None:
    with open_api.client() as http:
        answer = http.post("/v1/webhook_endpoints", json={**GOOD, "event_types": ["video.completed"]})
        made = http.post("/v1/webhook_endpoints", json=GOOD).json()
        tried = http.post(f"/v1/webhook_endpoints/{made['id']}/test", json={"event_type": "video.completed"})
        missing = http.post("/v1/webhook_endpoints", json={"name": "n"})
        rotated = http.post(f"/v1/webhook_endpoints/{made['id']}/rotate_secret", json={"keep": True})
        bare = http.post(f"/v1/webhook_endpoints/{made['id']}/rotate_secret")
    for refused in (answer, tried):
        assert refused.status_code == 400
        assert all(name in refused.json()["error"]["message"] for name in EVENT_TYPES)
    assert tried.json()["error"]["param"] == "event_type"
    assert missing.json()["error"]["code"] == "missing_required_parameter"
    assert rotated.json()["error"]["code"] == "unknown_parameter"
    assert bare.status_code == 200


def test_projects_do_not_see_each_other(open_api: ApiServer, open_url: str, target: Receiver) -> None:
    mine = sdk_of(open_api).webhooks
    theirs = sdk_of(open_api, know_key(open_url, "sk-selftune-other", project="proj_other")).webhooks
    made = mine.create(name="mine", url=target.url, event_types=[SUCCEEDED])
    assert list(theirs.list()) == []
    attempts: list[Callable[[], object]] = [
        lambda: theirs.retrieve(made.id), lambda: theirs.update(made.id, name="x"), lambda: theirs.delete(made.id),
        lambda: theirs.rotate_secret(made.id), lambda: theirs.test(made.id, event_type=SUCCEEDED),
    ]  # fmt: skip
    for attempt in attempts:
        with pytest.raises(openai.NotFoundError, match=f"No such webhook endpoint: {made.id}"):
            attempt()
    end_job(open_url, "ftjob-theirs", JobState.SUCCEEDED, project="proj_other")
    end_job(open_url, "ftjob-mine", JobState.SUCCEEDED)
    wait_until(lambda: nothing_is_due(open_url))
    assert [unwrapped(item, made.signing_secret)["data"]["id"] for item in target.received] == ["ftjob-mine"]


def test_ends_of_jobs_arrive_signed_and_once(open_api: ApiServer, open_url: str, target: Receiver) -> None:
    webhooks = sdk_of(open_api).webhooks
    first = webhooks.create(name="both", url=f"{target.url}/both", event_types=[SUCCEEDED, FAILED])
    webhooks.create(name="failures", url=f"{target.url}/failures", event_types=[FAILED])
    for name in ("succeeded", "failed", "cancelled"):
        end_job(open_url, f"ftjob-{name}", JobState(name))
    wait_until(lambda: nothing_is_due(open_url))
    assert sorted(item.path for item in target.received) == ["/both", "/both", "/failures"]
    events = [unwrapped(item, first.signing_secret) for item in target.received if item.path == "/both"]
    assert {event["type"]: event["data"] for event in events} == {
        SUCCEEDED: {"id": "ftjob-succeeded"}, FAILED: {"id": "ftjob-failed"},
    }  # fmt: skip
    assert all(event["object"] == "event" and time.time() - event["created_at"] < 60 for event in events)
    assert {item.headers["webhook-id"] for item in target.received if item.path == "/both"} == {
        event["id"] for event in events
    }


def test_failed_deliveries_are_tried_again_under_the_same_id(
    open_api: ApiServer, open_url: str, target: Receiver
) -> None:
    made = sdk_of(open_api).webhooks.create(name="n", url=target.url, event_types=[SUCCEEDED])
    target.statuses = [500, 302]
    end_job(open_url, "ftjob-again", JobState.SUCCEEDED)
    wait_until(lambda: nothing_is_due(open_url))
    assert [item.path for item in target.received] == ["/", "/", "/"]  # a redirect is not followed
    assert len({item.headers["webhook-id"] for item in target.received}) == 1
    assert len({item.body for item in target.received}) == 1
    assert not any("cookie" in item.headers for item in target.received)
    for item in target.received:
        assert unwrapped(item, made.signing_secret)["data"] == {"id": "ftjob-again"}


@pytest.mark.parametrize("deleted", [False, True])
def test_gone_endpoints_are_not_asked_again(
    open_api: ApiServer, open_url: str, target: Receiver, deleted: bool
) -> None:
    webhooks = sdk_of(open_api).webhooks
    made = webhooks.create(name="n", url=target.url, event_types=[SUCCEEDED])
    target.statuses = [500 if deleted else 410]
    target.hold()
    end_job(open_url, "ftjob-gone", JobState.SUCCEEDED)
    wait_until(lambda: target.received)
    if deleted:
        webhooks.delete(made.id)
    target.go_on.set()
    wait_until(lambda: nothing_is_due(open_url))
    assert len(target.received) == 1


def test_delivery_survives_the_server_that_was_killed(tmp_path: Path, lone_url: str, target: Receiver) -> None:
    options = {"webhook_allow_private": True, "webhook_retry_base_s": 0.05}
    first = ApiServer(tmp_path / "home", lone_url, **options)
    made = sdk_of(first).webhooks.create(name="n", url=target.url, event_types=[SUCCEEDED])
    target.hold()
    end_job(lone_url, "ftjob-kept", JobState.SUCCEEDED)
    wait_until(lambda: target.received)
    first.process.kill()
    first.process.wait()
    target.go_on.set()
    with redis.Redis.from_url(lone_url) as client:
        [(delivery, _)] = client.zrange(keys.WEBHOOK_QUEUE, 0, -1, withscores=True)
        client.zadd(keys.WEBHOOK_QUEUE, {delivery: 1})  # as if the dead server's claim had run out
    second = ApiServer(tmp_path / "home", lone_url, **options)
    try:
        wait_until(lambda: nothing_is_due(lone_url))
    finally:
        assert second.stop() == 0
    assert len(target.received) == 2
    assert len({item.headers["webhook-id"] for item in target.received}) == 1
    assert unwrapped(target.received[1], made.signing_secret)["data"] == {"id": "ftjob-kept"}


def test_slow_endpoint_blocks_neither_requests_nor_others(open_api: ApiServer, open_url: str, target: Receiver) -> None:
    webhooks = sdk_of(open_api).webhooks
    with receiver() as slow:
        slow.hold()
        webhooks.create(name="slow", url=slow.url, event_types=[SUCCEEDED])
        webhooks.create(name="quick", url=target.url, event_types=[FAILED])
        for n in range(10):
            end_job(open_url, f"ftjob-slow-{n}", JobState.SUCCEEDED)
        wait_until(lambda: len(slow.received) == 4)
        end_job(open_url, "ftjob-quick", JobState.FAILED)
        wait_until(lambda: target.received, timeout_s=5)
        assert len(slow.received) == 4
        slow.go_on.set()
        wait_until(lambda: nothing_is_due(open_url))
    ids = [item.headers["webhook-id"] for item in slow.received]
    assert (len(ids), len(set(ids))) == (10, 10)


def test_two_servers_deliver_once(open_api: ApiServer, tmp_path: Path, open_url: str, target: Receiver) -> None:
    second = ApiServer(tmp_path / "home", open_url, webhook_allow_private=True)
    try:
        sdk_of(open_api).webhooks.create(name="n", url=target.url, event_types=[SUCCEEDED])
        for n in range(30):
            end_job(open_url, f"ftjob-both-{n}", JobState.SUCCEEDED)
        wait_until(lambda: nothing_is_due(open_url))
    finally:
        second.stop()
    ids = [item.headers["webhook-id"] for item in target.received]
    assert (len(ids), len(set(ids))) == (30, 30)


@pytest.mark.parametrize("keep", [False, True])
def test_rotated_secret_signs_and_the_old_one_for_a_day_if_kept(
    open_api: ApiServer, target: Receiver, keep: bool
) -> None:
    webhooks = sdk_of(open_api).webhooks
    made = webhooks.create(name="n", url=target.url, event_types=[SUCCEEDED])
    rotated = webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=keep)
    assert webhooks.test(made.id, event_type=FAILED).status_code == 200
    [item] = target.received
    assert unwrapped(item, rotated.signing_secret)["type"] == FAILED
    if keep:
        assert unwrapped(item, made.signing_secret)["type"] == FAILED
    else:
        with pytest.raises(openai.InvalidWebhookSignatureError):
            unwrapped(item, made.signing_secret)


def test_test_tells_what_the_endpoint_answered(open_api: ApiServer, target: Receiver) -> None:
    webhooks = sdk_of(open_api).webhooks
    made = webhooks.create(name="n", url=target.url, event_types=[SUCCEEDED])
    target.statuses = [503]
    assert webhooks.test(made.id, event_type=SUCCEEDED).to_dict() == {
        "object": "webhook_endpoint.test", "webhook_endpoint_id": made.id, "event_type": SUCCEEDED,
        "status_code": 503, "success": True,
    }  # fmt: skip
    webhooks.update(made.id, url="http://127.0.0.1:1/")
    with pytest.raises(openai.BadRequestError, match="was not reached") as caught:
        webhooks.test(made.id, event_type=SUCCEEDED)
    assert caught.value.code == "webhook_undeliverable"


PRIVATE = [
    "https://127.0.0.1/", "https://localhost/", "https://[::1]/", "https://10.0.0.8/", "https://192.168.0.1:8443/",
    "https://169.254.169.254/latest/meta-data", "https://[::ffff:127.0.0.1]/", "https://[::ffff:a00:1]/",
    "https://2130706433/", "https://0x7f000001/", "https://0177.0.0.1/", "https://127.1/", "https://0/",
    "https://[fe80::1]/", "https://[fd00::1]/", "https://224.0.0.1/", "https://[64:ff9b::7f00:1]/",
]  # fmt: skip


@pytest.mark.parametrize("url", PRIVATE)
def test_private_addresses_are_refused(api: ApiServer, url: str) -> None:
    webhooks = sdk_of(api).webhooks
    public = webhooks.create(name="n", url="https://93.184.216.34/", event_types=[SUCCEEDED])
    for attempt in (
        lambda: webhooks.create(name="n", url=url, event_types=[SUCCEEDED]),
        lambda: webhooks.update(public.id, url=url),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            attempt()
        assert (caught.value.param, caught.value.code) == ("url", "invalid_value")
    assert [item.url for item in webhooks.list()] == ["https://93.184.216.34/"]


def test_plain_http_needs_the_setting(api: ApiServer) -> None:
    with pytest.raises(openai.BadRequestError, match="must begin with https://"):
        sdk_of(api).webhooks.create(name="n", url="http://93.184.216.34/", event_types=[SUCCEEDED])


def test_address_is_checked_at_each_delivery(
    open_api: ApiServer, open_url: str, target: Receiver, tmp_path: Path
) -> None:
    """An endpoint that was fine when it was made, and leads inside by now, is not asked."""
    made = sdk_of(open_api).webhooks.create(name="n", url=target.url.replace("http", "https"), event_types=[SUCCEEDED])
    closed = ApiServer(tmp_path, open_url)
    try:
        with pytest.raises(openai.BadRequestError, match="private network"):
            sdk_of(closed).webhooks.test(made.id, event_type=SUCCEEDED)
    finally:
        closed.stop()
    assert target.received == []
