"""The whole product in one run: start the stack, fine-tune the base model, ask both models the same unseen questions.

    python examples/demo.py [--data-dir DIR] [--base-url URL]

With --base-url (and OPENAI_API_KEY) it uses a stack that runs already; otherwise it starts one and stops it at the end.
Everything goes through the official openai SDK. What the task is and where its labels come from: chatterbot_topics.py.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from chatterbot_topics import TOPICS, write
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from openai.types.fine_tuning import FineTuningJob

from shared.process import die_with_parent

BATCH_SIZE = 8
_QUESTIONS_AT_ONCE = 8
_START_DEADLINE_S = 600.0


def main() -> int:
    arguments = _arguments()
    begun = time.monotonic()
    data = write(arguments.data_dir / "dataset")
    _shorten(data["train"], arguments.examples)
    _shorten(data["test"], arguments.questions)
    with _stack(arguments) as (base_url, key):
        client = OpenAI(base_url=base_url, api_key=key)
        say(f"the API answers at {base_url} after {time.monotonic() - begun:.0f} s")
        base = _wait_for_base(client)
        job = _train(client, base, data, arguments.epochs)
        _wait_until_ready(base_url)
        tuned = job.fine_tuned_model or ""
        say("asking both models the same questions, none of which was trained on")
        questions = [json.loads(line)["messages"] for line in data["test"].read_text().splitlines()]
        scores = asyncio.run(_ask_both(base_url, key, (base, tuned), questions))
        _report(scores, questions, base, tuned, _seconds_to_first_answer(client, job.id))
    say(f"done in {(time.monotonic() - begun) / 60:.1f} minutes")
    _how_to_go_on(arguments, tuned)
    return 0


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fine-tune the base model on this machine and show what it learned.")
    parser.add_argument("--data-dir", type=Path, default=Path(".demo"), help="where the stack keeps its data")
    parser.add_argument("--base-url", help="use this running stack, with the key in OPENAI_API_KEY")
    parser.add_argument("--epochs", type=int, default=2, help="passes over the training data")
    parser.add_argument("--examples", type=int, help="how many examples to learn, instead of all")
    parser.add_argument("--questions", type=int, help="how many questions to ask both models, instead of all")
    return parser.parse_args()


@contextlib.contextmanager
def _stack(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield base URL and key of a stack that runs already, or of one that lives as long as this block."""
    if arguments.base_url:
        yield arguments.base_url, os.environ["OPENAI_API_KEY"]
        return
    arguments.data_dir.mkdir(parents=True, exist_ok=True)
    log = arguments.data_dir / "up.log"
    port = _free_port()
    command = [sys.executable, "-m", "services.cli", "up", "--data-dir", str(arguments.data_dir), "--port", str(port)]
    say(f"starting the stack; its log is {log}")
    with log.open("wb") as output, _start(command, output) as process:
        try:
            _wait_for_api(f"http://127.0.0.1:{port}/healthz", process, log)
            yield f"http://127.0.0.1:{port}/v1", (arguments.data_dir / "admin.key").read_text().strip()
        finally:
            say("stopping the stack")
            process.terminate()
            process.wait(timeout=120)


def _start(command: Sequence[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a process that Ctrl-C does not reach, since we stop it in order, and that ends when we do in any case."""
    return subprocess.Popen(
        command,
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=lambda: die_with_parent(signal.SIGTERM),  # noqa: PLW1509 - no threads here yet
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _wait_for_api(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_DEADLINE_S
    while _get(url)[0] != 200:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the stack did not start:\n{log.read_text()[-3000:]}")
        time.sleep(0.2)


def _wait_until_ready(base_url: str) -> None:
    """Wait for every part, the inference server among them; it starts while the model trains."""
    url = base_url.removesuffix("/v1") + "/readyz"
    deadline = time.monotonic() + _START_DEADLINE_S
    while (answer := _get(url))[0] != 200:
        if time.monotonic() > deadline:
            raise SystemExit(f"the stack is not ready: {answer[1]}")
        time.sleep(0.5)


def _get(url: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - our own server
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except (OSError, ValueError):
        return 0, None


def _wait_for_base(client: OpenAI) -> str:
    """Return the base model's id; at the first start it is unpacked from its package, which takes half a minute."""
    say("waiting for the base model")
    deadline = time.monotonic() + _START_DEADLINE_S
    while time.monotonic() < deadline:
        for model in client.models.list():
            if model.owned_by == "system":
                say(f"base model {model.id}")
                return model.id
        time.sleep(0.5)
    raise SystemExit("there is no base model")


def _train(client: OpenAI, base: str, data: dict[str, Path], epochs: int) -> FineTuningJob:
    """Upload the data, start a job and show its progress until it has succeeded."""
    train = client.files.create(file=data["train"], purpose="fine-tune")
    validation = client.files.create(file=data["validation"], purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=base,
        training_file=train.id,
        validation_file=validation.id,
        suffix="topics",
        seed=1,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": epochs, "batch_size": BATCH_SIZE}},
        },
    )
    say(f"job {job.id}: {_count(data['train'])} examples to learn, {_count(data['validation'])} to validate")
    job = _watch(client, job)
    if job.status != "succeeded":
        raise SystemExit(f"the job {job.status}: {job.error.message if job.error else ''}")
    say(f"model {job.fine_tuned_model}")
    return job


def _shorten(path: Path, count: int | None) -> None:
    """Leave the first `count` lines, which are in no order of topics; all of them where it is None."""
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:count]))


def _count(path: Path) -> int:
    return len(path.read_text().splitlines())


def _watch(client: OpenAI, job: FineTuningJob) -> FineTuningJob:
    """Print a job's story as it happens: messages in full, steps every few seconds."""
    seen: set[str] = set()
    next_step = 0.0
    while True:
        job = client.fine_tuning.jobs.retrieve(job.id)
        for event in reversed(client.fine_tuning.jobs.list_events(job.id, limit=50).data):
            if event.id in seen:
                continue
            seen.add(event.id)
            if event.type == "metrics" and "full validation" not in event.message and time.monotonic() < next_step:
                continue
            if event.type == "metrics":
                next_step = time.monotonic() + 5
            say(f"  {event.message}{_time_left(job) if event.type == 'metrics' else ''}")
        if job.status in {"succeeded", "failed", "cancelled"}:
            return job
        time.sleep(0.5)


def _time_left(job: FineTuningJob) -> str:
    if job.estimated_finish is None:
        return ""
    left = max(0, job.estimated_finish - int(time.time()))
    return f"  ({left // 60}:{left % 60:02d} left)"


async def _ask_both(
    base_url: str, key: str, models: Sequence[str], questions: Sequence[list[dict[str, str]]]
) -> dict[str, list[bool]]:
    """Return, for each model, which of the questions it answered rightly."""
    turn = asyncio.Semaphore(_QUESTIONS_AT_ONCE)
    async with AsyncOpenAI(base_url=base_url, api_key=key) as client:
        return {
            model: await asyncio.gather(*(_ask(client, turn, model, question) for question in questions))
            for model in models
        }


async def _ask(client: AsyncOpenAI, turn: asyncio.Semaphore, model: str, messages: list[dict[str, str]]) -> bool:
    """Ask with the prompt of the data set; right means: the answer names the right topic and no other."""
    *prompt, expected = messages
    async with turn:
        answer = await client.chat.completions.create(
            model=model, messages=cast(list[ChatCompletionMessageParam], prompt), max_tokens=12, temperature=0
        )
    words = set(re.findall(r"[a-z]+", (answer.choices[0].message.content or "").lower()))
    return words & set(TOPICS) == {expected["content"]}


def _seconds_to_first_answer(client: OpenAI, job_id: str) -> float | None:
    """Read from the job's events how long it took from the last training step to the model's first token in vLLM."""
    for event in client.fine_tuning.jobs.list_events(job_id, limit=20).data:
        if isinstance(event.data, dict) and "seconds_to_first_token" in event.data:
            return float(event.data["seconds_to_first_token"])
    return None


def _report(
    scores: dict[str, list[bool]],
    questions: Sequence[list[dict[str, str]]],
    base: str,
    tuned: str,
    seconds: float | None,
) -> None:
    commonest, count = Counter(question[-1]["content"] for question in questions).most_common(1)[0]
    rows = [
        (f"base        {base}", sum(scores[base])),
        (f"fine-tuned  {tuned}", sum(scores[tuned])),
        (f"(always answering '{commonest}')", count),
    ]
    width = max(len(name) for name, _ in rows)
    print(f"\n{'held-out questions':<{width}}  right of {len(questions)}  accuracy")
    for name, right in rows:
        print(f"{name:<{width}}  {right:>{9 + len(str(len(questions)))}}  {right / len(questions):>7.0%}")
    if seconds is not None:
        print(f"\nfrom the last training step to the first token of the new model: {seconds:.2f} s, no restart")
    print(
        "What this shows: in minutes, on this machine, a 135M model learned to sort lines of one small corpus into\n"
        "its eight files. It is a narrow task with short answers; nothing is claimed about anything else.\n"
    )


def _how_to_go_on(arguments: argparse.Namespace, tuned: str) -> None:
    if arguments.base_url:
        return
    print(
        f"\nGo on from here; the model is kept in {arguments.data_dir}:\n"
        f"  .venv/bin/selftune up --data-dir {arguments.data_dir}\n"
        f"  export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=$(cat {arguments.data_dir}/admin.key)\n"
        '  curl $OPENAI_BASE_URL/chat/completions -H "Authorization: Bearer $OPENAI_API_KEY" \\\n'
        "    -H 'Content-Type: application/json' \\\n"
        f'    -d \'{{"model": "{tuned}", "messages": [{{"role": "user", "content": "What is a haiku?"}}]}}\'\n'
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; the stack has been stopped")
