"""How a replica begins and ends: adapters are there when it is ready, SIGTERM drains, and no process is left behind."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.inference_stack import BASE_ID, InferenceStack, inference_stack, make_adapter, make_base

NAME = f"ft:{BASE_ID}:org:life:1"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def stack(base: Path) -> Iterator[InferenceStack]:
    with inference_stack(base, max_loras=2, max_cpu_loras=4) as stack:
        yield stack


def engine_process(stack: InferenceStack) -> psutil.Process | None:
    """Return the engine's process as soon as it was forked: the one that the fork server has for a child."""
    launcher, *others = stack.processes()
    return next((process for process in others if process.ppid() != launcher.pid), None)


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=10)[1]


def test_starts_with_its_adapters_and_finishes_its_answers_at_sigterm(
    stack: InferenceStack, base: Path, tmp_path: Path
) -> None:
    stack.start()
    stack.wait_for(lambda: [r for r in stack.replicas() if r.state == "waiting" and BASE_ID in r.reason])
    stack.publish(NAME, make_adapter(tmp_path / "adapter", base, seed=1))
    stack.register_base()
    assert stack.wait_ready().resident == [NAME] or stack.wait_for(lambda: stack.replicas()[0].resident) == [NAME]

    received: list[str] = []
    begun = threading.Event()
    body = {"model": NAME, "prompt": [20, 30], "max_tokens": 150, "ignore_eos": True, "stream": True}

    def read() -> None:
        with stack.http() as client, client.stream("POST", "/v1/completions", json=body) as response:
            for line in response.iter_lines():
                begun.set()
                received.append(line)

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(20)
    assert stack.process is not None
    processes = stack.processes()
    stack.process.send_signal(signal.SIGTERM)
    reader.join(timeout=30)
    last = json.loads([line for line in received if line.startswith("data: {")][-1][6:])
    assert last["choices"][0]["finish_reason"] == "length", stack.tail()
    assert stack.process.wait(timeout=30) == 0, stack.tail()
    assert stack.replicas() == []
    assert gone(processes)


def test_death_of_the_engine_ends_the_replica_with_an_error(stack: InferenceStack) -> None:
    stack.register_base()
    stack.start()
    replica = stack.wait_ready()
    assert replica.engine_pid is not None
    assert stack.process is not None
    os.kill(replica.engine_pid, signal.SIGKILL)
    assert stack.process.wait(timeout=30) == 1, stack.tail()
    assert stack.replicas() == []


@pytest.mark.parametrize("moment", ["ready", "starting"])
def test_sigkill_of_the_launcher_leaves_no_process(stack: InferenceStack, moment: str) -> None:
    stack.register_base()
    stack.start()
    if moment == "ready":
        stack.wait_ready()
    else:
        stack.wait_for(lambda: engine_process(stack), timeout_s=120)
    processes = stack.processes()
    assert stack.process is not None
    stack.process.kill()
    stack.process.wait()
    assert gone(processes[1:]), stack.tail()


def test_sigterm_while_the_engine_starts_ends_it_cleanly(stack: InferenceStack) -> None:
    stack.register_base()
    stack.start()
    stack.wait_for(lambda: engine_process(stack), timeout_s=120)
    processes = stack.processes()
    assert stack.process is not None
    stack.process.send_signal(signal.SIGTERM)
    assert stack.process.wait(timeout=30) == 0, stack.tail()
    assert stack.replicas() == []
    assert gone(processes[1:])
