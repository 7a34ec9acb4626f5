"""Two real replicas behind the real API: who answers for what, and what clients notice when one goes."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
import openai
import psutil
import pytest

from shared.records import ReplicaRecord
from tests.api_server import ApiServer
from tests.integration.inference_stack import (
    BASE_ID,
    KEY,
    START_DEADLINE_S,
    InferenceStack,
    inference_stack,
    make_adapter,
    make_base,
)

NAMES = [f"ft:{BASE_ID}:acme:tenant-{number}:x" for number in range(4)]


class Pair:
    """Two replicas, by process; `replace` starts a new one for one that has ended."""

    def __init__(self, stack: InferenceStack) -> None:
        self.stack = stack
        self.processes = [stack.spawn(), stack.spawn()]
        self.ready()

    def ready(self) -> list[ReplicaRecord]:
        def both() -> list[ReplicaRecord]:
            assert all(process.poll() is None for process in self.processes), self.stack.tail()
            found = [replica for replica in self.stack.replicas() if replica.state == "ready"]
            return found if len(found) == 2 else []

        return self.stack.wait_for(both, START_DEADLINE_S)

    def replace(self, place: int) -> None:
        self.processes[place] = self.stack.spawn()
        self.ready()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    base = make_base(tmp_path_factory.mktemp("base"))
    with inference_stack(base, max_loras=2, max_cpu_loras=6, threads=1) as stack:
        stack.register_base()
        for number, name in enumerate(NAMES):
            stack.publish(name, make_adapter(tmp_path_factory.mktemp("adapter"), base, seed=number), listed=True)
        pair = Pair(stack)
        yield pair
        pair.close()


@pytest.fixture(scope="module")
def api(pair: Pair) -> Iterator[ApiServer]:
    server = ApiServer(pair.stack.home, pair.stack.settings.redis_url, internal_key=KEY)
    yield server
    server.stop()


@pytest.fixture
def sdk(api: ApiServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0)


def complete(sdk: openai.OpenAI, model: str, *, tokens: int = 8) -> str:
    answer = sdk.completions.create(
        model=model, prompt="the quick brown fox", max_tokens=tokens, temperature=0, extra_body={"ignore_eos": True}
    )
    return answer.choices[0].text


def made(stream: Any) -> int:
    """Read a stream to its end, and return how many tokens it says were made."""
    tokens: int = next(chunk.usage.completion_tokens for chunk in stream if chunk.usage)
    return tokens


def running(pair: Pair, place: int) -> int:
    """Return how many requests a replica answers at this moment, by its own count."""
    own = psutil.Process(pair.processes[place].pid)
    ports = {one.laddr.port for process in (own, *own.children(recursive=True))
             for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN}  # fmt: skip
    (url,) = [one.url for one in pair.stack.replicas() if int(one.url.rpartition(":")[2]) in ports]
    told = httpx2.get(f"{url}/metrics", headers={"authorization": f"Bearer {KEY}"}, timeout=30, trust_env=False).text
    (line,) = [line for line in told.splitlines() if line.startswith("selftune_requests_running ")]
    return int(float(line.split()[1]))


@contextmanager
def traffic(sdk: openai.OpenAI, expected: dict[str, str]) -> Iterator[list[BaseException]]:
    """Ask for every model all the time, and collect what goes wrong; wrong texts go wrong, too."""
    over, wrong = threading.Event(), list[BaseException]()

    def ask(model: str) -> None:
        while not over.is_set():
            try:
                assert complete(sdk, model) == expected[model]
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                wrong.append(error)

    with ThreadPoolExecutor(len(expected)) as pool:
        asking = [pool.submit(ask, model) for model in expected]
        try:
            yield wrong
        finally:
            over.set()
            for one in asking:
                one.result()


def test_both_replicas_hold_every_model_and_answer_alike(pair: Pair, api: ApiServer, sdk: openai.OpenAI) -> None:
    expected = {model: complete(sdk, model) for model in [BASE_ID, *NAMES]}
    assert len(set(expected.values())) == len(expected)
    with ThreadPoolExecutor(8) as pool:
        asked = [BASE_ID, *NAMES] * 4
        assert list(pool.map(lambda model: complete(sdk, model), asked)) == [expected[model] for model in asked]
    with api.client() as http:
        for name in NAMES:
            found = http.get(f"/v1/models/{name}/residency").json()
            assert found["warm"] == 2
            assert all(one["owner"] and one["load_ms"] > 0 for one in found["replicas"])


def test_a_replica_that_is_told_to_stop_finishes_its_answers_and_no_request_fails(
    pair: Pair, sdk: openai.OpenAI
) -> None:
    expected = {model: complete(sdk, model) for model in [BASE_ID, *NAMES]}
    streams: list[Any] = [
        sdk.completions.create(
            model=model, prompt="hello", max_tokens=400, stream=True, stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        for model in [BASE_ID, *NAMES] * 2
    ]  # fmt: skip
    with traffic(sdk, expected) as wrong:
        assert running(pair, 0) > 0, "there is something to finish"
        pair.processes[0].send_signal(signal.SIGTERM)
        with ThreadPoolExecutor(len(streams)) as pool:
            assert list(pool.map(made, streams)) == [400] * len(streams)
        assert pair.processes[0].wait(timeout=60) == 0
        time.sleep(1)
    assert not wrong
    pair.replace(0)


def test_a_killed_replica_costs_only_the_streams_that_had_begun_there(pair: Pair, sdk: openai.OpenAI) -> None:
    expected = {model: complete(sdk, model) for model in [BASE_ID, *NAMES]}
    cut = 0
    with traffic(sdk, expected) as wrong:
        streams: list[Any] = [
            sdk.completions.create(
                model=model, prompt="hello", max_tokens=300, stream=True, extra_body={"ignore_eos": True}
            )
            for model in [BASE_ID, *NAMES] * 2
        ]
        pair.processes[1].kill()
        for stream in streams:
            try:
                list(stream)
            except openai.APIError as error:
                assert "went away" in str(error)
                cut += 1
        time.sleep(2)
    assert not wrong
    assert 0 < cut < len(streams)
    assert pair.processes[1].wait(timeout=10) == -signal.SIGKILL
    pair.replace(1)
    assert {model: complete(sdk, model) for model in expected} == expected
