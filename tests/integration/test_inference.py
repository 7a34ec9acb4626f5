"""One real engine on a tiny random Llama: hot loading, refusals, leases, and right answers beside each other."""

from __future__ import annotations

import json
import shutil
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from shared.adapters import WEIGHTS_NAME
from shared.records import ReplicaRecord
from tests.integration.inference_stack import BASE_ID, InferenceStack, inference_stack, make_adapter, make_base

PROMPT = [20, 30, 40, 50, 60]
CAPACITY = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, base: Path) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [make_adapter(folder / str(seed), base, seed=seed) for seed in range(6)]


@pytest.fixture(scope="module")
def stack(base: Path) -> Iterator[InferenceStack]:
    """A ready replica with two slots and room for three adapters."""
    with inference_stack(base, max_loras=2, max_cpu_loras=CAPACITY) as stack:
        stack.register_base()
        stack.start()
        stack.wait_ready()
        yield stack


@pytest.fixture(autouse=True)
def same_engine(stack: InferenceStack) -> Iterator[None]:
    """Whatever a test does, the engine process is the same afterwards and answers for the base model."""
    yield
    assert stack.replica is not None
    assert current(stack).engine_pid == stack.replica.engine_pid, stack.tail()
    assert complete(stack, BASE_ID, max_tokens=1).status_code == 200


@pytest.fixture
def model(stack: InferenceStack, request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """Publish adapters under names of this test; they are retired after it."""
    names: list[str] = []

    def publish(folder: Path, /, **changes: Any) -> str:
        name = f"ft:{BASE_ID}:org:{request.node.originalname}:{len(names)}"
        names.append(name)
        stack.publish(name, folder, **changes)
        return name

    yield publish
    for name in names:
        stack.retire(name)


def current(stack: InferenceStack) -> ReplicaRecord:
    return stack.wait_for(lambda: next(iter(stack.replicas()), None))


def complete(stack: InferenceStack, name: str, **options: Any) -> httpx2.Response:
    body = {"model": name, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "ignore_eos": True, **options}
    with stack.http() as client:
        return client.post("/v1/completions", json=body)


def tokens(stack: InferenceStack, name: str) -> list[int]:
    """Return the greedy answer to PROMPT as token ids."""
    response = complete(stack, name, return_token_ids=True)
    assert response.status_code == 200, response.text
    ids: list[int] = response.json()["choices"][0]["token_ids"]
    return ids


@contextmanager
def stream(stack: InferenceStack, name: str, max_tokens: int = 480) -> Iterator[Iterator[dict[str, Any]]]:
    """Open a stream and wait for its first chunk; yields the chunks that follow."""
    body = {"model": name, "prompt": PROMPT, "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
    with stack.http() as client, client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        chunks = (json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {"))
        next(chunks)
        yield chunks


def running_in_engine(stack: InferenceStack) -> int:
    """Return how many requests the engine has in its batches, by its own metric."""
    with stack.http() as client:
        lines = client.get("/metrics").text.splitlines()
    return round(sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running")))


def error_of(response: httpx2.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    return error


def test_every_route_but_health_needs_the_key(stack: InferenceStack) -> None:
    assert stack.replica is not None
    with httpx2.Client(base_url=stack.replica.url, trust_env=False) as stranger:
        assert stranger.get("/health").status_code == 200
        assert stranger.get("/health").content == b""
        for path in ("/v1/models", "/version", "/tokenize", "/metrics", "/metrics/", "/health/"):
            assert stranger.get(path).status_code == 401
        assert stranger.get("/v1/models", headers={"authorization": "Bearer wrong"}).status_code == 401


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/invocations"])
def test_routes_that_change_the_engine_do_not_exist(stack: InferenceStack, path: str) -> None:
    with stack.http() as client:
        assert client.post(path, json={}).status_code == 404


def test_unknown_model_is_refused_in_openais_words(stack: InferenceStack) -> None:
    response = complete(stack, "ft:nobody:knows::this")
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"
    assert error_of(response)["param"] == "model"


def test_published_adapter_is_loaded_and_answers(
    stack: InferenceStack, adapters: list[Path], model: Callable[..., str]
) -> None:
    name = model(adapters[0])
    assert stack.wait_residency(name, "warm").load_ms is not None
    assert tokens(stack, name) != tokens(stack, BASE_ID)
    assert name in stack.wait_for(lambda: current(stack).resident)


def test_request_ahead_of_the_news_finds_the_adapter(
    stack: InferenceStack, adapters: list[Path], model: Callable[..., str]
) -> None:
    assert complete(stack, model(adapters[1])).status_code == 200


def test_answers_carry_the_name_that_was_asked_for(
    stack: InferenceStack, adapters: list[Path], model: Callable[..., str]
) -> None:
    name = model(adapters[0])
    assert complete(stack, name).json()["model"] == name
    with stream(stack, name, max_tokens=4) as chunks:
        assert {chunk["model"] for chunk in chunks} == {name}
    with stack.http() as client:
        messages = [{"role": "user", "content": "what is the capital of france?"}]
        chat = client.post("/v1/chat/completions", json={"model": name, "messages": messages, "max_tokens": 3})
    assert chat.status_code == 200
    assert chat.json()["model"] == name


def test_greedy_tokens_and_logprobs_equal_plain_peft(
    stack: InferenceStack, base: Path, adapters: list[Path], model: Callable[..., str]
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    choice = complete(stack, model(adapters[2]), logprobs=1, return_token_ids=True).json()["choices"][0]
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapters[2])
    with torch.no_grad():
        logits = plain(torch.tensor([PROMPT + choice["token_ids"]])).logits[0, len(PROMPT) - 1 : -1]
    assert choice["token_ids"] == logits.argmax(-1).tolist()
    expected = logits.log_softmax(-1).max(-1).values.tolist()
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected, abs=1e-3)


def test_base_answers_the_same_alone_and_beside_adapters(
    stack: InferenceStack, adapters: list[Path], model: Callable[..., str]
) -> None:
    def ask() -> tuple[list[int], list[float]]:
        choice = complete(stack, BASE_ID, logprobs=1, return_token_ids=True).json()["choices"][0]
        return choice["token_ids"], choice["logprobs"]["token_logprobs"]

    alone = ask()
    first, second = model(adapters[0]), model(adapters[1])
    expected = {name: tokens(stack, name) for name in (first, second)}
    for _ in range(20):  # a stall of this process can outlast a stream
        with stream(stack, first), stream(stack, second):
            beside = ask()
            both_went_on = running_in_engine(stack) >= 2
            assert {name: tokens(stack, name) for name in (first, second)} == expected
        if both_went_on:
            break
    else:
        pytest.fail("the adapters' streams ended before the base had answered, every time")
    assert beside[0] == alone[0]
    assert beside[1] == pytest.approx(alone[1], abs=1e-4)


def test_more_adapters_than_places_all_answer_right(
    stack: InferenceStack, adapters: list[Path], model: Callable[..., str]
) -> None:
    names = [model(folder) for folder in adapters]
    expected = {name: tokens(stack, name) for name in names}
    assert len({tuple(answer) for answer in expected.values()}) == len(names)
    with ThreadPoolExecutor(6) as pool:
        asked = names * 4
        assert list(pool.map(lambda name: tokens(stack, name), asked)) == [expected[name] for name in asked]


def truncate(folder: Path) -> None:
    path = folder / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS_NAME).read_bytes())
    data[-5] ^= 0xFF
    (folder / WEIGHTS_NAME).write_bytes(data)


def put_nan(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS_NAME).read_bytes())
    data[-4:] = struct.pack("<f", float("nan"))
    (folder / WEIGHTS_NAME).write_bytes(data)


def empty(folder: Path) -> None:
    (folder / WEIGHTS_NAME).write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "reason"), [(truncate, ""), (empty, ""), (put_nan, "not finite"), (shutil.rmtree, "No such file")]
)
def test_unfit_adapter_is_refused_with_its_reason(
    stack: InferenceStack,
    adapters: list[Path],
    model: Callable[..., str],
    tmp_path: Path,
    damage: Callable[[Path], None],
    reason: str,
) -> None:
    good = model(adapters[0])
    answer = tokens(stack, good)
    bad = tmp_path / "bad"
    shutil.copytree(adapters[1], bad)
    if damage is shutil.rmtree:
        name = model(adapters[5], folder="adapters/nowhere")
    else:
        damage(bad)
        name = model(bad)
    failed = stack.wait_residency(name, "failed")
    response = complete(stack, name)
    assert response.status_code == 422, response.text
    assert error_of(response)["code"] == "adapter_unavailable"
    assert failed.reason in error_of(response)["message"]
    assert reason in failed.reason
    assert failed.reason
    assert tokens(stack, good) == answer


def test_changed_bytes_are_noticed(
    stack: InferenceStack, adapters: list[Path], model: Callable[..., str], tmp_path: Path
) -> None:
    from shared.adapters import adapter_digest

    bad = tmp_path / "bad"
    shutil.copytree(adapters[1], bad)
    promised = adapter_digest(bad)
    flip_a_byte(bad)
    shutil.copytree(bad, stack.home / "adapters" / BASE_ID / "changed")
    name = model(bad, sha256=promised, folder=f"adapters/{BASE_ID}/changed")
    assert "not those that were published" in stack.wait_residency(name, "failed").reason


def test_adapter_of_another_base_is_refused(
    stack: InferenceStack, model: Callable[..., str], tmp_path: Path, adapters: list[Path]
) -> None:
    deeper = make_base(tmp_path / "deeper", layers=3)
    name = model(make_adapter(tmp_path / "adapter", deeper, seed=1))
    assert "another base" in stack.wait_residency(name, "failed").reason
    name = model(adapters[0], base_fingerprint="other")
    assert "another base" in stack.wait_residency(name, "failed").reason


def test_too_high_a_rank_is_refused(
    stack: InferenceStack, base: Path, model: Callable[..., str], tmp_path: Path
) -> None:
    name = model(make_adapter(tmp_path / "adapter", base, seed=1, rank=16))
    assert "rank" in stack.wait_residency(name, "failed").reason


def test_deleted_files_of_an_evicted_adapter_hurt_nobody_else(
    stack: InferenceStack, adapters: list[Path], model: Callable[..., str], tmp_path: Path
) -> None:
    folder = stack.home / "adapters" / BASE_ID / "doomed"
    shutil.copytree(adapters[0], folder)
    doomed = model(adapters[0], folder=f"adapters/{BASE_ID}/doomed")
    answer = tokens(stack, doomed)
    shutil.rmtree(folder)
    assert tokens(stack, doomed) == answer  # what is in memory needs no files
    others = [model(path) for path in adapters[1 : 1 + CAPACITY]]
    answers = [tokens(stack, name) for name in others]
    stack.wait_residency(doomed, "staged")
    assert complete(stack, doomed).status_code == 422
    assert [tokens(stack, name) for name in others] == answers


def test_disconnect_gives_the_lease_back(
    stack: InferenceStack, adapters: list[Path], model: Callable[..., str]
) -> None:
    name = model(adapters[0])
    with stream(stack, name) as chunks:
        next(chunks)
        stack.wait_for(lambda: current(stack).running == 1)
    stack.wait_for(lambda: current(stack).running == 0)
    stack.retire(name)
    stack.wait_residency(name, "gone")


def test_retired_adapter_finishes_its_answers_and_takes_no_new_ones(
    stack: InferenceStack, adapters: list[Path], model: Callable[..., str]
) -> None:
    name = model(adapters[0])
    with stream(stack, name) as chunks:
        stack.retire(name)
        stack.wait_for(lambda: complete(stack, name).status_code == 404)
        assert len(list(chunks)) > 100
    stack.wait_residency(name, "gone")
    assert complete(stack, name).status_code == 404


def test_known_models_answer_while_redis_is_away(
    stack: InferenceStack, adapters: list[Path], model: Callable[..., str]
) -> None:
    name = model(adapters[0])
    answer = tokens(stack, name)
    stack.valkey.send_signal(signal.SIGSTOP)
    try:
        assert tokens(stack, name) == answer
        unknown = complete(stack, "ft:tiny-llama:org:unknown:1")
    finally:
        stack.valkey.send_signal(signal.SIGCONT)
    assert unknown.status_code == 503
    assert unknown.headers["retry-after"]
    assert error_of(unknown)["code"] == "store_unavailable"
    stack.wait_for(lambda: complete(stack, model(adapters[1])).status_code == 200)


def test_malformed_and_huge_bodies_are_the_clients_fault(stack: InferenceStack) -> None:
    with stack.http() as client:
        headers = {"content-type": "application/json"}
        assert client.post("/v1/completions", content=b"{not json", headers=headers).status_code == 400
        assert client.post("/v1/completions", content=b'{"model": 7}', headers=headers).status_code == 400
        huge = b'{"model":"x","prompt":"' + b"a" * (33 << 20) + b'"}'
        assert client.post("/v1/completions", content=huge, headers=headers).status_code == 413


def test_one_load_serves_all_who_ask_at_once(
    stack: InferenceStack, adapters: list[Path], model: Callable[..., str]
) -> None:
    barrier = threading.Barrier(6)

    def ask(name: str) -> list[int]:
        barrier.wait()
        return tokens(stack, name)

    name = model(adapters[3])
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, [name] * 6))
    assert answers == [answers[0]] * 6
