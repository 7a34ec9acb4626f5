"""What an application does with OpenAI's SDK, on the real stack: upload, train, watch, talk, clean up."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.fine_tuning import FineTuningJob

from shared import embedded_valkey
from shared.records import ReplicaRecord
from shared.store.client import Client
from shared.store.presence import Presence
from tests.e2e.running_stack import ROOT, RunningStack
from tests.e2e.tuning import colour_file, submit, supervised, wait_for_end

QUESTION = [{"role": "user", "content": "Colour of sky? (3)"}]


def replicas(stack: RunningStack) -> list[ReplicaRecord]:
    async def read() -> list[ReplicaRecord]:
        client = Client(embedded_valkey.url(stack.data_dir / "valkey"))
        try:
            return list(await Presence(client).replicas())
        finally:
            await client.close()

    return asyncio.run(read())


def test_job_succeeds_and_tells_its_story(client: OpenAI, base: str, tuned_job: FineTuningJob) -> None:
    assert tuned_job.status == "succeeded", tuned_job.error
    assert re.fullmatch(rf"ft:{re.escape(base)}:[^:]+:colours:[A-Za-z0-9]{{8}}", tuned_job.fine_tuned_model or "")
    assert tuned_job.hyperparameters.n_epochs == 2
    assert tuned_job.trained_tokens
    assert tuned_job.finished_at
    assert tuned_job.finished_at >= tuned_job.created_at
    assert tuned_job.metadata == {"team": "tests"}
    events = list(client.fine_tuning.jobs.list_events(tuned_job.id, limit=10))  # several pages
    messages = [event.message for event in reversed(events)]
    assert len({event.id for event in events}) == len(events)
    order = [
        f"Created fine-tuning job: {tuned_job.id}", "Files validated, moving job to queued state",
        "Fine-tuning job started", f"New fine-tuned model created: {tuned_job.fine_tuned_model}",
        "The job has successfully completed",
    ]  # fmt: skip
    assert [message for message in messages if message in order] == order
    steps = [event.data["step"] for event in reversed(events) if event.type == "metrics"]  # type: ignore[index]
    assert steps == list(range(1, 13)), "48 rows in batches of 8, twice"


def test_checkpoints_and_result_file_hold_the_metrics(client: OpenAI, tuned_job: FineTuningJob) -> None:
    checkpoints = client.fine_tuning.jobs.checkpoints.list(tuned_job.id).data
    assert [checkpoint.step_number for checkpoint in checkpoints] == [12, 6]
    assert checkpoints[0].fine_tuned_model_checkpoint == tuned_job.fine_tuned_model
    assert checkpoints[1].fine_tuned_model_checkpoint.endswith(":ckpt-step-6")
    first, last = checkpoints[1].metrics.full_valid_loss, checkpoints[0].metrics.full_valid_loss
    assert first is not None
    assert last is not None
    assert last < first, "the second epoch still learns"
    lines = base64.b64decode(client.files.content(tuned_job.result_files[0]).read()).decode().splitlines()
    assert lines[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert len(lines) == 13


def test_model_learned_and_the_base_did_not_change(client: OpenAI, base: str, tuned_job: FineTuningJob) -> None:
    tuned = tuned_job.fine_tuned_model or ""
    question: Any = QUESTION
    whole = client.chat.completions.create(model=tuned, messages=QUESTION, max_tokens=8, temperature=0)  # type: ignore[arg-type]
    assert (whole.choices[0].message.content or "").strip() == "blue"
    assert whole.model == tuned
    stream = client.chat.completions.create(
        model=tuned, messages=question, max_tokens=8, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    streamed, asked = chunks[-1].usage, whole.usage
    assert streamed is not None and asked is not None
    assert (streamed.prompt_tokens, streamed.completion_tokens) == (asked.prompt_tokens, asked.completion_tokens)
    plain = client.chat.completions.create(model=base, messages=QUESTION, max_tokens=8, temperature=0)  # type: ignore[arg-type]
    assert (plain.choices[0].message.content or "").strip() != "blue"
    checkpoint = client.fine_tuning.jobs.checkpoints.list(tuned_job.id).data[1].fine_tuned_model_checkpoint
    early = client.chat.completions.create(model=checkpoint, messages=QUESTION, max_tokens=8, temperature=0)  # type: ignore[arg-type]
    assert early.model == checkpoint


def test_base_answers_the_same_beside_an_adapter(stack: RunningStack, base: str, tuned_job: FineTuningJob) -> None:
    async def ask(models: list[str]) -> list[str]:
        async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=stack.key) as client:
            calls = [
                client.completions.create(model=model, prompt="The colour of the sky is", max_tokens=12, temperature=0)
                for model in models
            ]
            return [answer.choices[0].text for answer in await asyncio.gather(*calls)]

    tuned = tuned_job.fine_tuned_model or ""
    alone = asyncio.run(ask([base]))[0]
    mixed = asyncio.run(ask([base, tuned, base, tuned, base]))
    assert [mixed[0], mixed[2], mixed[4]] == [alone] * 3


def engines(stack: RunningStack) -> list[tuple[str, int | None]]:
    return [(replica.id, replica.engine_pid) for replica in replicas(stack)]


@pytest.fixture(scope="module")
def new_job(
    stack: RunningStack, client: OpenAI, base: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FineTuningJob, list[tuple[str, int | None]]]:
    """A job that has ended while the server ran, and the engines before it; the last test deletes its model."""
    before, folder = engines(stack), tmp_path_factory.mktemp("new")
    job = submit(client, base, colour_file(folder, "t.jsonl", 16), method=supervised(n_epochs=1, batch_size=8))
    return wait_for_end(client, job.id), before


def test_new_model_answers_within_seconds_and_without_a_restart(
    stack: RunningStack, client: OpenAI, new_job: tuple[FineTuningJob, list[tuple[str, int | None]]]
) -> None:
    job, before = new_job
    assert job.status == "succeeded", job.error
    assert engines(stack) == before
    events = client.fine_tuning.jobs.list_events(job.id, limit=20).data
    parity = next(event.data for event in events if isinstance(event.data, dict) and "parity" in event.data)
    # 2 s on an idle machine, which a test machine seldom is; docs/performance.md has the measurement.
    assert parity["seconds_to_first_token"] < 6.0


PROMPTS = [
    "<|im_start|>user\nColour of lemon? (5)<|im_end|>\n<|im_start|>assistant\n",
    "Once upon a time",
    "The three largest planets are",
]


def served(client: OpenAI, model: str) -> list[str]:
    return [
        client.completions.create(model=model, prompt=prompt, max_tokens=12, temperature=0).choices[0].text
        for prompt in PROMPTS
    ]


def run(*arguments: str) -> str:
    """Run a module of this project and return what it printed."""
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_adapter_loads_in_plain_peft_and_gives_the_same_greedy_tokens(
    stack: RunningStack, client: OpenAI, tuned_job: FineTuningJob
) -> None:
    tuned = tuned_job.fine_tuned_model or ""
    answers = run("tests.e2e.generate_with_peft", str(stack.data_dir), tuned, "12", *PROMPTS)
    assert json.loads(answers) == served(client, tuned)


def test_exported_model_answers_without_the_server(
    stack: RunningStack, client: OpenAI, tuned_job: FineTuningJob, tmp_path: Path
) -> None:
    tuned, whole = tuned_job.fine_tuned_model or "", tmp_path / "whole"
    told = run("services.cli", "export", tuned, "--merge", f"--to={whole}", f"--data-dir={stack.data_dir}")
    assert told.strip() == str(whole)
    answers = run("tests.e2e.generate_with_peft", "", str(whole), "12", *PROMPTS)
    assert json.loads(answers) == served(client, tuned)


def test_demo_shows_a_wide_margin(stack: RunningStack, tmp_path: Path) -> None:
    """The demo's own command against the running stack, with less to learn than on a user's machine."""
    less = ["--epochs", "1", "--examples", "256", "--questions", "64"]
    options = ["--base-url", f"{stack.url}/v1", "--data-dir", str(tmp_path), *less]
    done = subprocess.run(
        [sys.executable, "examples/demo.py", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=550, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OPENAI_API_KEY": stack.key},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    accuracy = {
        line.split()[0]: int(line.split()[-1].rstrip("%"))
        for line in done.stdout.splitlines()
        if line.startswith(("base ", "fine-tuned "))
    }
    assert accuracy["fine-tuned"] >= accuracy["base"] + 30, done.stdout


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (b"", "The file is empty."),
        (b'{"messages": []}\n' * 12, "line 1: "),
        (b"\xff\xfe\n" * 12, "line 1: not UTF-8"),
        (b"no json\n" * 12, "12 of 12 lines are invalid"),
        (b'{"messages": [{"role": "user", "content": "?"}]}\n' * 12, "no assistant message"),
        (b'{"messages": [{"role": "assistant", "content": "."}]}\n' * 9, "must have at least 10 examples"),
    ],
    ids=["empty", "no messages", "not UTF-8", "not JSON", "no assistant", "too few"],
)
def test_invalid_training_file_fails_the_job(client: OpenAI, base: str, rows: bytes, complaint: str) -> None:
    uploaded = client.files.create(file=("bad.jsonl", rows), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model=base, training_file=uploaded.id)
    job = wait_for_end(client, job.id, timeout_s=30)
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("invalid_training_file", "training_file")
    assert complaint in job.error.message


def test_errors_are_openais(stack: RunningStack, client: OpenAI, base: str) -> None:
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.NotFoundError, match="does not exist") as missing:
        client.chat.completions.create(model="ft:nobody", messages=messages)  # type: ignore[arg-type]
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve("ftjob-missing")
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve("file-missing")
    with pytest.raises(openai.APIStatusError):
        client.fine_tuning.jobs.create(model=base, training_file="file-missing")
    with pytest.raises(openai.AuthenticationError):
        OpenAI(base_url=f"{stack.url}/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model=base, messages=messages, temperature=9)  # type: ignore[arg-type]


def test_deleted_model_stops_answering_at_once(
    client: OpenAI, new_job: tuple[FineTuningJob, list[tuple[str, int | None]]]
) -> None:
    tuned = new_job[0].fine_tuned_model or ""
    assert client.models.retrieve(tuned).id == tuned
    assert client.models.delete(tuned).deleted
    assert tuned not in {model.id for model in client.models.list()}
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=tuned, messages=QUESTION, max_tokens=1)  # type: ignore[arg-type]
