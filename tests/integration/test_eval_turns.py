"""Runs of several projects in one api process, and runs that processes die of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
import redis
from msgspec.structs import replace

from services.api.evals.run import MAX_TRIES
from shared.eval_records import EvalRunRecord
from shared.store.client import Client
from shared.store.eval_runs import EvalRunStore
from tests.api_server import ApiServer, know_key, wait_until, with_store
from tests.batch_requests import sdk_of, serve
from tests.eval_scene import Speaker, adds, asking, content, ended, make_eval, rows

PLACES = 16
Launch = Callable[[], ApiServer]


@pytest.fixture
def url(valkey_folder: Path) -> str:
    url = f"unix://{valkey_folder / 'valkey.sock'}?db=3"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def upstream(url: str) -> Iterator[Speaker]:
    with Speaker(says=adds, stuck={"What is 0 and 0?"}) as server:
        serve(url, server)
        yield server


@pytest.fixture
def launch(url: str, tmp_path: Path) -> Iterator[Launch]:
    with ExitStack() as stack:

        def start_one() -> ApiServer:
            server = ApiServer(tmp_path / "home", url, lease_ttl_s=2)
            stack.callback(server.stop)
            know_key(url, server.key)
            return server

        yield start_one


def start(sdk: openai.OpenAI, eval_id: str, given: list[dict[str, Any]]) -> Any:
    return sdk.evals.runs.create(eval_id, data_source=asking(content(given)))


def stored(url: str, run_id: str, *, tries: int | None = None) -> EvalRunRecord:
    """Read a run's record, after setting its tries if that is wanted."""
    found: list[EvalRunRecord] = []

    async def change(client: Client) -> None:
        def tried(record: EvalRunRecord) -> EvalRunRecord:
            return record if tries is None else replace(record, tries=tries)

        found.append(await EvalRunStore(client, item_days=1).update(run_id, tried))

    with_store(url, change)
    return found[0]


def test_project_gets_a_place_from_the_one_that_has_the_most(launch: Launch, upstream: Speaker, url: str) -> None:
    api = launch()
    crowd, sdk = sdk_of(api, know_key(url, "sk-crowd", project="proj_crowd")), sdk_of(api)
    crowded = make_eval(crowd)
    for _ in range(PLACES + 1):
        start(crowd, crowded.id, rows(1))
    wait_until(lambda: upstream.at_once == PLACES)
    done = ended(sdk, start(sdk, make_eval(sdk).id, rows(2)[1:]), timeout_s=10)
    assert (done.status, done.result_counts.passed) == ("completed", 1)
    wait_until(lambda: upstream.at_once == PLACES, timeout_s=10)


def test_a_run_that_processes_die_of_fails_in_the_end(launch: Launch, upstream: Speaker, url: str) -> None:
    first = launch()
    sdk = sdk_of(first)
    run = start(sdk, make_eval(sdk).id, rows(1))
    wait_until(lambda: upstream.at_once == 1)
    assert stored(url, run.id).tries == 1
    first.stop()
    assert stored(url, run.id).tries == 0, "one that gives it back lives"
    second = launch()
    wait_until(lambda: upstream.at_once == 1)
    second.process.kill()
    second.process.wait()
    stored(url, run.id, tries=MAX_TRIES)
    done = ended(sdk_of(launch()), run)
    assert (done.status, done.error.code) == ("failed", "server_error")
