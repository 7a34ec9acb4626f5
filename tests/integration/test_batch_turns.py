"""Batches of several projects in one api process: none keeps another's waiting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import redis
from msgspec.structs import replace

from shared.store.batches import BatchStore
from shared.store.client import Client
from shared.store.registry import Registry
from tests.api_server import ApiServer, know_key, make_base, wait_until, with_store
from tests.batch_requests import CHAT, Model, completed, content, ended, line, sdk_of, serve, start, until, upload

ABSENT = "org/absent-base"
PLACES = 64


@pytest.fixture
def url(valkey_folder: Path) -> Iterator[str]:
    url = f"unix://{valkey_folder / 'valkey.sock'}?db=2"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    yield url


@pytest.fixture
def upstream(url: str) -> Iterator[Model]:
    with Model() as server:
        serve(url, server)
        with_store(url, lambda client: Registry(client).put_base(make_base(ABSENT)))
        yield server


@pytest.fixture
def api(url: str, upstream: Model, tmp_path: Path) -> Iterator[ApiServer]:
    server = ApiServer(tmp_path / "home", url, batch_concurrency=2 * PLACES)
    know_key(url, server.key)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def crowd(api: ApiServer, url: str) -> openai.OpenAI:
    """Another project's client."""
    return sdk_of(api, know_key(url, "sk-crowd", project="proj_crowd"))


def many(sdk: openai.OpenAI, count: int, **body: str) -> list[str]:
    file = upload(sdk, [line(0, **body)])
    return [sdk.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h").id for _ in range(count)]


def test_batches_without_a_server_give_their_places_back(
    api: ApiServer, crowd: openai.OpenAI, url: str, upstream: Model
) -> None:
    waiting = many(crowd, PLACES + 6, model=ABSENT)
    wait_until(lambda: crowd.batches.retrieve(waiting[-1]).status == "in_progress")
    sdk = sdk_of(api)
    assert ended(sdk, start(sdk, [line(0)])).status == "completed"
    assert crowd.batches.retrieve(waiting[0]).status == "in_progress"

    crowd.batches.cancel(waiting[0])
    assert ended(crowd, crowd.batches.retrieve(waiting[0]), timeout_s=5).status == "cancelled"

    async def let_time_pass(client: Client) -> None:
        await BatchStore(client).update(waiting[1], lambda record: replace(record, expires_at=1))

    with_store(url, let_time_pass)
    assert ended(crowd, crowd.batches.retrieve(waiting[1]), timeout_s=5).status == "expired"

    serve(url, upstream, id="replica-2", base=ABSENT)
    for batch_id in waiting[2:]:
        assert ended(crowd, crowd.batches.retrieve(batch_id), timeout_s=40).status == "completed"


def test_requests_beside_those_without_a_server_are_answered(api: ApiServer, url: str, upstream: Model) -> None:
    sdk = sdk_of(api)
    made = start(sdk, [line(n, model=ABSENT) if n % 2 else line(n) for n in range(600)])
    until(sdk, made, lambda found: completed(found) == 300)
    assert sdk.batches.retrieve(made.id).status == "in_progress"
    serve(url, upstream, id="replica-2", base=ABSENT)
    done = ended(sdk, made, timeout_s=40)
    assert (done.status, completed(done), done.error_file_id) == ("completed", 600, None)
    assert [one["custom_id"] for one in content(sdk, done.output_file_id)] == [f"r{n}" for n in range(600)]
    assert len(upstream.received) == 600, "none is asked twice"


def test_project_gets_a_place_from_the_one_that_has_the_most(
    api: ApiServer, crowd: openai.OpenAI, upstream: Model
) -> None:
    upstream.stuck = {"prompt 0"}
    crowded = many(crowd, PLACES + 2)
    wait_until(lambda: upstream.at_once == PLACES)
    sdk = sdk_of(api)
    assert ended(sdk, start(sdk, [line(1)])).status == "completed"
    wait_until(lambda: upstream.at_once == PLACES, timeout_s=5)

    crowd.batches.cancel(crowded[-1])
    assert ended(crowd, crowd.batches.retrieve(crowded[-1]), timeout_s=5).status == "cancelled"
