"""OpenAI's SDKs, method by method, on the real stack: Python 3.x and 2.x, sync and async, and Node."""

from __future__ import annotations

import os
import subprocess
import sys

import httpx2
import pytest
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.running_stack import ROOT, RunningStack

SDK = ROOT / "tests" / "sdk"
OLD_SDK = ROOT / ".openai2"


@pytest.fixture(scope="session")
def other_project(stack: RunningStack) -> str:
    """Id of a project that a model can be shared with."""
    headers = {"authorization": f"Bearer {stack.key}"}
    answer = httpx2.post(f"{stack.url}/v1/organization/projects", json={"name": "guests"}, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


@pytest.fixture
def environment(stack: RunningStack, base: str, tuned_job: FineTuningJob, other_project: str) -> dict[str, str]:
    assert tuned_job.status == "succeeded", tuned_job.error
    return {
        **os.environ,
        "OPENAI_BASE_URL": f"{stack.url}/v1",
        "OPENAI_API_KEY": stack.key,
        "BASE_MODEL": base,
        "TUNED_MODEL": tuned_job.fine_tuned_model or "",
        "JOB_ID": tuned_job.id,
        "OTHER_PROJECT": other_project,
    }


def walk(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=SDK, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    return done.stdout


@pytest.mark.parametrize("mode", ["strict", "sync", "async"])
def test_python_sdk(environment: dict[str, str], mode: str) -> None:
    said = walk([sys.executable, "walk.py", mode], {**environment, "PYTHONPATH": str(ROOT)})
    assert said.startswith("openai 3.")


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_python_sdk_2(environment: dict[str, str], mode: str) -> None:
    assert OLD_SDK.is_dir(), "make sdks fetches it"
    said = walk([sys.executable, "walk.py", mode], {**environment, "PYTHONPATH": str(OLD_SDK)})
    assert said.startswith("openai 2.")


def test_node_sdk(environment: dict[str, str]) -> None:
    assert (SDK / "node_modules").is_dir(), "make sdks fetches it"
    assert "walked" in walk(["node", "walk.mjs"], environment)
