"""Pulling plugs on the real stack. Runs last: it kills the services that other tests use."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import openai
import psutil
import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.running_stack import RunningStack, kill_tree, running_stack, still_alive, wait_for
from tests.e2e.tuning import colour_file, submit, supervised, wait_for_end

LONG = supervised(n_epochs=50, batch_size=4)


def running(client: OpenAI, job_id: str) -> bool:
    """Tell whether the job has made its first step."""
    return any(event.type == "metrics" for event in client.fine_tuning.jobs.list_events(job_id).data)


def test_cancel_stops_the_training_within_5_s(stack: RunningStack, client: OpenAI, base: str, tmp_path: Path) -> None:
    job = submit(client, base, colour_file(tmp_path, "t.jsonl", 64), method=LONG)
    wait_for(lambda: running(client, job.id), 120)
    processes = stack.training_processes()
    assert processes
    begun = time.monotonic()
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert still_alive(processes, 5.0) == []
    assert time.monotonic() - begun < 5.0
    assert client.fine_tuning.jobs.retrieve(job.id).status == "cancelled"


def test_killed_trainer_goes_on_from_its_checkpoint(
    stack: RunningStack, client: OpenAI, base: str, tmp_path: Path
) -> None:
    job = submit(
        client, base, colour_file(tmp_path, "t.jsonl", 16), method=supervised(n_epochs=2, batch_size=1), seed=3
    )
    wait_for(lambda: running(client, job.id), 120)
    stack.service("services.trainer").kill()
    job = wait_for_end(client, job.id)
    assert job.status == "succeeded", job.error
    steps = [
        event.data["step"]  # type: ignore[index]
        for event in client.fine_tuning.jobs.list_events(job.id, limit=100).data
        if event.type == "metrics"
    ]
    assert max(steps) == 32
    assert set(steps) == set(range(1, 33)), "no step is missing from the story"


def test_killed_inference_server_comes_back_with_every_adapter(
    stack: RunningStack, client: OpenAI, tuned_job: FineTuningJob
) -> None:
    question = [{"role": "user", "content": "Colour of coal? (4)"}]
    tuned = tuned_job.fine_tuned_model or ""
    service = stack.service("services.inference")
    family = [service, *service.children(recursive=True)]
    service.kill()
    assert still_alive(family, 10.0) == []
    with pytest.raises(openai.InternalServerError) as away:
        client.with_options(max_retries=0).chat.completions.create(model=tuned, messages=question)  # type: ignore[arg-type]
    assert away.value.status_code == 503
    wait_for(lambda: stack.readiness()[0] == 503, 10)  # its last heartbeat counts for five seconds
    stack.wait_until_ready()
    answer = client.chat.completions.create(model=tuned, messages=question, max_tokens=4, temperature=0)  # type: ignore[arg-type]
    assert (answer.choices[0].message.content or "").strip() == "black"


def test_killed_database_means_503_and_comes_back_whole(stack: RunningStack, client: OpenAI) -> None:
    jobs = [job.id for job in client.fine_tuning.jobs.list(limit=100)]
    stack.service("valkey-server").send_signal(signal.SIGSTOP)  # away, and not restarted yet
    frozen = stack.service("valkey-server")
    try:
        answer = httpx2.get(f"{stack.url}/v1/files", headers={"Authorization": f"Bearer {stack.key}"}, timeout=30)
    finally:
        frozen.kill()
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "store_unavailable"
    stack.wait_until_ready()
    assert [job.id for job in client.fine_tuning.jobs.list(limit=100)] == jobs


def test_sigkill_of_the_launcher_leaves_no_process(tmp_path: Path) -> None:
    with running_stack(tmp_path / "data") as stack:
        try:
            wait_for(lambda: len(psutil.Process(stack.process.pid).children()) == 4, 60, lambda: stack.log[-3000:])
            time.sleep(3)  # let them start children of their own
            family = psutil.Process(stack.process.pid).children(recursive=True)
            stack.process.kill()
            stack.process.wait()
            assert still_alive(family, 10.0) == []
        finally:
            kill_tree(stack.process)


def test_second_stack_on_one_folder_is_refused(stack: RunningStack) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "up", "--data-dir", str(stack.data_dir)],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "is in use by process" in done.stderr
