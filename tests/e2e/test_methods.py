"""What a job may be beyond the plain one, on the real stack: preferences, pauses, models that others share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import openai
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.running_stack import RunningStack, wait_for
from tests.e2e.tuning import COLOURS, colour_file, submit, supervised, wait_for_end
from tests.webhook_receiver import receiver


def preference_file(folder: Path, rows: int) -> Path:
    """Write `rows` pairs that prefer a whole sentence to one word."""
    path = folder / "preferences.jsonl"
    things = list(COLOURS)

    def row(number: int) -> dict[str, Any]:
        thing = things[number % len(things)]
        return {
            "input": {"messages": [{"role": "user", "content": f"Colour of {thing}? ({number})"}]},
            "preferred_output": [{"role": "assistant", "content": f"The colour of {thing} is {COLOURS[thing]}."}],
            "non_preferred_output": [{"role": "assistant", "content": COLOURS[thing]}],
        }

    path.write_text("".join(json.dumps(row(number)) + "\n" for number in range(rows)))
    return path


def metrics_of(client: OpenAI, job_id: str) -> list[dict[str, Any]]:
    """The data of every step's event, oldest first."""
    events = list(client.fine_tuning.jobs.list_events(job_id, limit=100))
    return [event.data for event in reversed(events) if event.type == "metrics"]  # type: ignore[misc]


def test_preferences_on_top_of_a_fine_tuned_model(
    stack: RunningStack, client: OpenAI, tuned_job: FineTuningJob, tmp_path: Path
) -> None:
    """DPO on an ft: model, told of by a webhook and by a stream of events, logged to Weights & Biases."""
    parent = tuned_job.fine_tuned_model or ""
    with receiver() as target:
        endpoint = client.webhooks.create(
            name="e2e", url=f"{target.url}/hook", event_types=["fine_tuning.job.succeeded"]
        )
        job = submit(
            client, parent, preference_file(tmp_path, 32), suffix="polite", seed=5,
            method={"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2, "batch_size": 8, "beta": 0.1}}},
            integrations=[{"type": "wandb", "wandb": {"project": "e2e", "tags": ["dpo"]}}],
        )  # fmt: skip
        told = events_of(stack, job.id)
        job = wait_for_end(client, job.id)
        assert job.status == "succeeded", job.error
        # The parent's end may be told to an endpoint that was made just after it.
        wait_for(lambda: any(job.id in delivery.body.decode() for delivery in target.received), 30)
        client.webhooks.delete(endpoint.id)
    delivery = next(delivery for delivery in target.received if job.id in delivery.body.decode())
    event: Any = client.webhooks.unwrap(delivery.body.decode(), delivery.headers, secret=endpoint.signing_secret)
    assert (event.type, event.data.id) == ("fine_tuning.job.succeeded", job.id)
    assert told[0]["message"] == f"Created fine-tuning job: {job.id}"
    assert told[-1]["message"] == "The job has successfully completed"
    steps = metrics_of(client, job.id)
    assert [step["step"] for step in steps] == list(range(1, 9))
    assert abs(steps[0]["train_loss"] - 0.6931) < 1e-3, "nothing is preferred yet: ln 2"
    assert steps[-1]["rewards_margin"] > steps[0]["rewards_margin"]
    assert job.model == parent
    assert job.method and job.method.dpo and job.method.dpo.hyperparameters
    assert job.method.dpo.hyperparameters.beta == 0.1
    run = job.integrations[0].wandb  # type: ignore[index]
    assert run.project == "e2e"
    answer = client.chat.completions.create(
        model=job.fine_tuned_model or "", messages=[{"role": "user", "content": "Colour of sky? (3)"}], max_tokens=12
    )
    assert answer.choices[0].message.content


def events_of(stack: RunningStack, job_id: str) -> list[dict[str, Any]]:
    """Read the job's stream of events to its end."""
    told = []
    url = f"{stack.url}/v1/fine_tuning/jobs/{job_id}/events?stream=true"
    with httpx2.stream("GET", url, headers={"authorization": f"Bearer {stack.key}"}, timeout=400) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                told.append(json.loads(line.removeprefix("data: ")))
    return told


def test_paused_job_makes_room_and_goes_on_where_it_was(client: OpenAI, base: str, tmp_path: Path) -> None:
    long = submit(
        client, base, colour_file(tmp_path, "long.jsonl", 32), method=supervised(n_epochs=1, batch_size=1), seed=3
    )
    wait_for(lambda: len(metrics_of(client, long.id)) >= 2, 120)
    assert str(client.fine_tuning.jobs.pause(long.id).status) == "paused"
    short = submit(client, base, colour_file(tmp_path, "t.jsonl", 16), method=supervised(n_epochs=1, batch_size=16))
    assert wait_for_end(client, short.id).status == "succeeded", "a paused job does not hold others back"
    assert str(client.fine_tuning.jobs.retrieve(long.id).status) == "paused"
    done = len(metrics_of(client, long.id))
    assert done < 32
    assert client.fine_tuning.jobs.resume(long.id).status == "queued"
    job = wait_for_end(client, long.id)
    assert job.status == "succeeded", job.error
    assert [step["step"] for step in metrics_of(client, long.id)] == list(range(1, 33)), "none lost, none twice"


def test_shared_checkpoint_answers_the_other_project(stack: RunningStack, tuned_job: FineTuningJob) -> None:
    owner = stack.client
    tuned = tuned_job.fine_tuned_model or ""
    headers = {"authorization": f"Bearer {stack.key}"}
    projects = f"{stack.url}/v1/organization/projects"
    guest_id = httpx2.post(projects, json={"name": "guest"}, headers=headers, timeout=30).json()["id"]
    made = httpx2.post(f"{projects}/{guest_id}/api_keys", json={"name": "k"}, headers=headers, timeout=30)
    guest = OpenAI(base_url=f"{stack.url}/v1", api_key=made.json()["value"], max_retries=0)
    ask = {"model": tuned, "messages": [{"role": "user", "content": "Colour of sky? (3)"}], "max_tokens": 4}
    assert refused(guest, ask)
    granted = owner.fine_tuning.checkpoints.permissions.create(tuned, project_ids=[guest_id]).data[0]
    assert guest.chat.completions.create(**ask).model == tuned  # type: ignore[call-overload]
    assert tuned in {model.id for model in guest.models.list()}
    owner.fine_tuning.checkpoints.permissions.delete(granted.id, fine_tuned_model_checkpoint=tuned)
    assert refused(guest, ask)


def refused(client: OpenAI, request: dict[str, Any]) -> bool:
    try:
        client.chat.completions.create(**request)
    except openai.NotFoundError:
        return True
    return False
