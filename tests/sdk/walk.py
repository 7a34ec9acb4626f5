"""Every method of OpenAI's SDK that this server answers, against a running stack; openai 2.x and 3.x, sync and async.

`python walk.py sync|async|strict`, with OPENAI_BASE_URL, OPENAI_API_KEY, BASE_MODEL, and a model that was fine-tuned:
JOB_ID, TUNED_MODEL, and OTHER_PROJECT. Exits non-zero at the first thing that is not as an OpenAI user expects it.
`strict` checks every answer twice: the SDK against its types, and tests/openai_spec against OpenAI's specification.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import io
import json
import os
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import openai
from blocking import Blocking

BASE, TUNED, JOB = os.environ["BASE_MODEL"], os.environ["TUNED_MODEL"], os.environ["JOB_ID"]
CHAT = [{"role": "user", "content": f"Colour of {thing}?"} for thing in ("sky", "grass")]
ROWS = [json.dumps({"messages": [CHAT[n % 2], {"role": "assistant", "content": "blue"}]}) for n in range(12)]
TRAIN = "".join(f"{row}\n" for row in ROWS).encode()
SAID = [[{"role": "assistant", "content": text}] for text in ("It is blue.", "blue")]
PAIR = {"input": {"messages": CHAT[:1]}, "preferred_output": SAID[0], "non_preferred_output": SAID[1]}
PREFERENCES = f"{json.dumps(PAIR)}\n".encode() * 12


def make_client(mode: str) -> Any:
    if mode == "async":
        return Blocking(openai.AsyncOpenAI(max_retries=2, timeout=120), asyncio.new_event_loop())
    if mode == "sync":
        return openai.OpenAI(max_retries=2, timeout=120)
    http = openai.DefaultHttpxClient(event_hooks={"response": [check_answer]})
    return openai.OpenAI(timeout=120, _strict_response_validation=True, http_client=http)


def check_answer(response: Any) -> None:
    """Compare an answer with OpenAI's specification. Raises AssertionError that lists every difference."""
    from tests.openai_spec import violations

    if response.headers.get("content-type", "").startswith("application/json"):
        body = json.loads(response.read())
        found = violations(response.request.method, response.request.url.path, response.status_code, body)
        assert not found, "\n".join([*found, json.dumps(body)[:2000]])


def lax(client: Any) -> Any:
    """For answers that are right on the wire and wrong for the SDK's strict types; see docs/compatibility.md."""
    if isinstance(client, Blocking):
        return client
    return openai.OpenAI(api_key=client.api_key, base_url=client.base_url, max_retries=2, timeout=120)


def refused(call: Callable[[], Any], kind: type[Exception], code: str | None = None) -> None:
    try:
        call()
    except kind as error:
        assert code is None or error.code == code, error  # type: ignore[attr-defined]
    else:
        raise AssertionError(f"no {kind.__name__}")


def files(client: Any) -> str:
    made = [client.files.create(file=(f"{n}.jsonl", TRAIN), purpose="fine-tune") for n in range(3)]
    kept = client.files.create(
        file=io.BytesIO(b"Example data"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert kept.expires_at == kept.created_at + 3600
    listed = [file.id for file in client.files.list(purpose="fine-tune", limit=2, order="desc")]
    assert listed[:3] == [file.id for file in made[::-1]], "pages follow one another, newest first"
    assert client.files.retrieve(made[0].id).bytes == len(TRAIN)
    assert client.files.content(made[0].id).read() == TRAIN
    assert client.files.wait_for_processing(made[0].id).status == "processed"
    for file in (*made[1:], kept):
        assert client.files.delete(file.id).deleted
    refused(lambda: client.files.retrieve(kept.id), openai.NotFoundError)
    return str(made[0].id)


def uploads(client: Any) -> None:
    half = len(TRAIN) // 2
    begun = client.uploads.create(
        filename="parts.jsonl", purpose="fine-tune", bytes=len(TRAIN), mime_type="application/jsonl"
    )
    parts = [client.uploads.parts.create(begun.id, data=data) for data in (TRAIN[half:], TRAIN[:half])]
    done = client.uploads.complete(
        begun.id, part_ids=[part.id for part in parts[::-1]], md5=hashlib.md5(TRAIN, usedforsecurity=False).hexdigest()
    )
    assert done.status == "completed" and done.file.bytes == len(TRAIN)
    assert client.files.content(done.file.id).read() == TRAIN
    spare = client.uploads.create(filename="a", purpose="batch", bytes=1, mime_type="text/plain")
    assert client.uploads.cancel(spare.id).status == "cancelled"
    whole = client.uploads.upload_file_chunked(
        file=TRAIN, filename="chunked.jsonl", bytes=len(TRAIN), mime_type="application/jsonl", purpose="fine-tune",
        part_size=100,
    )  # fmt: skip
    assert client.files.content(whole.file.id).read() == TRAIN


def jobs(client: Any, training_file: str) -> None:
    calls, tag = client.fine_tuning.jobs, uuid.uuid4().hex
    preferences = client.files.create(file=("pairs.jsonl", PREFERENCES), purpose="fine-tune")
    job = calls.create(
        model=BASE, training_file=preferences.id, suffix="walk", seed=1, metadata={"walk": tag},
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 1, "batch_size": "auto"}}},
        integrations=[{"type": "wandb", "wandb": {"project": "walk", "tags": ["a"]}}],
        extra_body={"selftune": {"rank": 4, "priority": "low"}},
    )  # fmt: skip
    assert job.method.dpo.hyperparameters.beta == 0.2 and calls.retrieve(job.id).id == job.id
    assert [found.id for found in calls.list(metadata={"walk": tag})] == [job.id]
    calls.cancel(job.id)
    assert [event.message for event in calls.list_events(job.id, limit=1)][-1] == f"Created fine-tuning job: {job.id}"
    pausing(lax(client).fine_tuning.jobs, training_file)
    refused(lambda: calls.create(model=BASE, training_file=training_file, suffix=""), openai.BadRequestError)
    refused(lambda: calls.create(model=BASE, training_file="file-missing"), openai.NotFoundError)
    refused(
        lambda: calls.create(model=BASE, training_file=training_file, method={"type": "reinforcement"}),
        openai.BadRequestError,
        "missing_required_parameter",
    )
    grader = {"type": "string_check", "name": "n", "input": "i", "operation": "eq", "reference": "r"}
    job = calls.create(
        model=BASE, training_file=training_file,
        method={"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": {"eval_samples": 2}}},
    )  # fmt: skip
    assert job.method.reinforcement.grader.to_dict() == grader
    assert job.method.reinforcement.hyperparameters.eval_samples == 2
    calls.cancel(job.id)
    graders = client.fine_tuning.alpha.graders
    assert graders.validate(grader=grader).grader.to_dict() == grader
    assert graders.run(grader=grader, model_sample="s", item={}).reward == 0.0
    refused(lambda: graders.validate(grader=grader | {"input": "{{ x }}"}), openai.BadRequestError, "invalid_value")


def pausing(calls: Any, training_file: str) -> None:
    other = calls.create(model=BASE, training_file=training_file)
    assert calls.pause(other.id).status == "paused"
    assert calls.resume(other.id).status in {"queued", "validating_files"}
    assert calls.cancel(other.id).status == "cancelled"
    refused(lambda: calls.pause(other.id), openai.BadRequestError, "invalid_job_state")


def finished_job(client: Any) -> None:
    calls = client.fine_tuning.jobs
    job = calls.retrieve(JOB)
    assert (job.status, job.fine_tuned_model, job.error) == ("succeeded", TUNED, None)
    assert job.trained_tokens > 0 and isinstance(job.hyperparameters.n_epochs, int)
    checkpoints = list(calls.checkpoints.list(JOB, limit=1))
    assert checkpoints[0].fine_tuned_model_checkpoint == TUNED and checkpoints[0].metrics.train_loss is not None
    messages = [event.message for event in calls.list_events(JOB, limit=5)]
    assert messages[0] == "The job has successfully completed" and messages[-1].startswith("Created")
    result = base64.b64decode(client.files.content(job.result_files[0]).read()).decode()
    assert result.startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,")


def permissions(client: Any, project: str) -> None:
    calls = client.fine_tuning.checkpoints.permissions
    granted = next(iter(calls.create(TUNED, project_ids=[project])))
    assert [item.id for item in calls.list(TUNED, project_id=project)] == [granted.id]
    assert calls.delete(granted.id, fine_tuned_model_checkpoint=TUNED).deleted


def models(client: Any) -> None:
    assert {BASE, TUNED} <= {model.id for model in client.models.list()}
    assert client.models.retrieve(TUNED).id == TUNED
    refused(lambda: client.models.retrieve("ft:nobody"), openai.NotFoundError, "model_not_found")
    refused(lambda: client.models.delete(BASE), openai.BadRequestError)


def chat(client: Any) -> None:
    create = client.chat.completions.create
    answer = create(
        model=TUNED, messages=CHAT[:1], max_completion_tokens=8, temperature=0.5, seed=1, stop=["\n"], n=2,
        logprobs=True, top_logprobs=2, user="somebody", presence_penalty=0.1, parallel_tool_calls=True,
    )  # fmt: skip
    assert len(answer.choices) == 2 and answer.model == TUNED and answer.usage.completion_tokens > 0
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2
    plain = create(model=TUNED, messages=CHAT[:1], max_tokens=8, temperature=0).choices[0].message.content
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(create(model=TUNED, messages=CHAT[:1], max_tokens=8, temperature=0, **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == plain
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens > 0
    schema = {"type": "object", "properties": {"a": {"enum": ["b"]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
    shaped = create(model=TUNED, messages=CHAT[:1], max_tokens=32, response_format=form)
    assert json.loads(shaped.choices[0].message.content) == {"a": "b"}
    tool = {"type": "function", "function": {"name": "look", "parameters": schema}}
    choice = {"type": "function", "function": {"name": "look"}}
    called = create(model=BASE, messages=CHAT[:1], tools=[tool], tool_choice=choice, max_tokens=64)
    assert json.loads(called.choices[0].message.tool_calls[0].function.arguments) == {"a": "b"}
    refused(lambda: create(model="ft:nobody", messages=CHAT), openai.NotFoundError, "model_not_found")
    refused(lambda: create(model=TUNED, messages=[]), openai.BadRequestError)
    refused(lambda: create(model=TUNED, messages=CHAT, temperature=5), openai.BadRequestError)
    refused(lambda: client.embeddings.create(model=BASE, input="text"), openai.BadRequestError)


def stored_chat(client: Any) -> None:
    calls, tag = client.chat.completions, uuid.uuid4().hex
    made = [
        calls.create(model=TUNED, messages=CHAT[:1], max_tokens=4, store=True, metadata={"walk": tag}) for _ in range(2)
    ]
    list(calls.create(model=TUNED, messages=CHAT[:1], max_tokens=4, store=True, metadata={"walk": tag}, stream=True))
    found = list(calls.list(metadata={"walk": tag}, limit=2))
    assert [item.id for item in found[:2]] == [item.id for item in made] and len(found) == 3, "oldest first"
    assert calls.retrieve(made[0].id).choices[0].message.content == made[0].choices[0].message.content
    assert calls.update(made[0].id, metadata={"walk": "another"}).metadata == {"walk": "another"}
    first = next(iter(lax(client).chat.completions.messages.list(made[1].id)))
    assert (first.role, first.content) == ("user", CHAT[0]["content"])
    for item in found:
        assert calls.delete(item.id).deleted
    refused(lambda: calls.retrieve(made[0].id), openai.NotFoundError)


def completions(client: Any) -> None:
    create = client.completions.create
    answer = create(model=BASE, prompt=["Once", "Twice"], max_tokens=4, temperature=0, logprobs=1)
    assert len(answer.choices) == 2 and len(answer.choices[0].logprobs.token_logprobs) == 4
    relaxed = lax(client).completions.create
    pieces = relaxed(model=BASE, prompt="Once", max_tokens=4, temperature=0, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text
    echoed = relaxed(model=BASE, prompt="Once", max_tokens=4, temperature=0, logprobs=1, echo=True)
    assert echoed.choices[0].text == "Once" + answer.choices[0].text


def responses(client: Any) -> None:
    calls = client.responses
    first = calls.create(model=TUNED, input="Colour of sky?", max_output_tokens=16, temperature=0, metadata={"a": "b"})
    assert first.output_text and first.status in {"completed", "incomplete"} and first.model == TUNED
    assert calls.retrieve(first.id).output_text == first.output_text
    assert [item.content[0].text for item in calls.input_items.list(first.id)] == ["Colour of sky?"]
    second = calls.create(model=TUNED, input="And of grass?", previous_response_id=first.id, max_output_tokens=16)
    assert second.previous_response_id == first.id and second.usage.input_tokens > first.usage.input_tokens
    events = list(calls.create(model=TUNED, input="Colour of sky?", max_output_tokens=16, temperature=0, stream=True))
    assert events[0].type == "response.created" and events[-1].type in {"response.completed", "response.incomplete"}
    assert events[-1].response.output_text == first.output_text
    assert calls.retrieve(events[-1].response.id).output_text == first.output_text
    assert calls.input_tokens.count(model=TUNED, input="Colour of sky?").input_tokens == first.usage.input_tokens
    refused(lambda: calls.cancel(first.id), openai.BadRequestError)
    refused(lambda: calls.compact(model=TUNED, input="x"), openai.BadRequestError)
    calls.delete(first.id)
    refused(lambda: calls.retrieve(first.id), openai.NotFoundError)


def aliases(client: Any) -> None:
    name = f"walk-{uuid.uuid4().hex[:8]}"
    made = client.post("/aliases", body={"name": name, "model": TUNED}, cast_to=object)
    assert made["model"] == TUNED and made["warm"] is True
    create = client.chat.completions.create
    answer = create(model=name, messages=CHAT[:1], max_tokens=4, temperature=0)
    assert answer.model == TUNED
    assert name in [model.id for model in client.models.list()]
    moved = client.post(f"/aliases/{name}", body={"model": BASE, "expected_revision": 1}, cast_to=object)
    assert (moved["revision"], moved["previous_model"], moved["warm"]) == (2, TUNED, True)
    assert create(model=name, messages=CHAT[:1], max_tokens=4).model == BASE
    stale: Any = {"model": TUNED, "expected_revision": 1}
    refused(lambda: client.post(f"/aliases/{name}", body=stale, cast_to=object), openai.BadRequestError, "alias_moved")
    assert client.post(f"/aliases/{name}/rollback", cast_to=object)["model"] == TUNED
    canary: Any = {"canary": {"model": BASE, "percent": 10, "limits": {"max_error_rate": 0.5}}}
    assert client.post(f"/aliases/{name}", body=canary, cast_to=object)["canary"]["model"] == BASE
    refused(lambda: client.models.delete(TUNED), openai.BadRequestError, "model_in_use")
    assert client.post(f"/aliases/{name}/promote", cast_to=object)["model"] == BASE
    history = client.get(f"/aliases/{name}/history", cast_to=object)["data"]
    assert [one["action"] for one in history] == ["promoted", "canary_set", "rolled_back", "moved", "created"]
    assert client.delete(f"/aliases/{name}", cast_to=object)["deleted"]
    refused(lambda: create(model=name, messages=CHAT[:1]), openai.NotFoundError, "model_not_found")


def batches(client: Any) -> None:
    bodies = [{"model": model, "messages": CHAT[:1], "max_tokens": 4} for model in (TUNED, BASE, "ft:nobody")]
    lines = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for n, body in enumerate(bodies)
    ]
    data = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    source = client.files.create(file=("batch.jsonl", data), purpose="batch")
    options: Any = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = client.batches.create(input_file_id=source.id, metadata={"walk": "1"}, **options)
    other = client.batches.create(input_file_id=source.id, **options)
    assert client.batches.cancel(other.id).status in {"cancelling", "cancelled"}
    assert [item.id for item in client.batches.list(limit=1)][:2] == [other.id, batch.id]
    deadline = time.monotonic() + 120
    while client.batches.retrieve(batch.id).status not in {"completed", "failed", "expired", "cancelled"}:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    done = client.batches.retrieve(batch.id)
    counts = done.request_counts
    assert (done.status, counts.total, counts.completed, counts.failed) == ("completed", 3, 2, 1), done
    answers = [json.loads(line) for line in client.files.content(done.output_file_id).read().splitlines()]
    assert {answer["custom_id"] for answer in answers} == {"0", "1"}
    assert all(answer["response"]["body"]["choices"] for answer in answers)
    (failed,) = (json.loads(line) for line in client.files.content(done.error_file_id).read().splitlines())
    assert failed["custom_id"] == "2" and failed["response"]["status_code"] == 404


def evals(client: Any) -> None:
    """Lists page by cursors; a run is done, another cancelled."""
    exact = {"type": "string_check", "name": "said", "operation": "ne", "input": "{{ sample.output_text }}"}
    exact["reference"] = ""
    schema = {"type": "object", "required": ["thing"]}
    config = {"type": "custom", "item_schema": schema, "include_sample_schema": True}
    made = client.evals.create(name="walk", data_source_config=config, testing_criteria=[exact], metadata={"walk": "1"})
    assert client.evals.retrieve(made.id).name == "walk" and made.testing_criteria[0].name == "said"
    assert client.evals.update(made.id, name="walked").name == "walked"
    assert made.id in [one.id for one in client.evals.list(limit=1, order="desc", order_by="updated_at")]
    rows = [{"item": {"thing": thing}} for thing in ("sky", "grass", "snow")]
    asked = {"type": "template", "template": [{"role": "user", "content": "Colour of {{ item.thing }}?"}]}
    source = {"type": "file_content", "content": rows}
    asking = {"type": "completions", "source": source, "input_messages": asked, "model": TUNED}
    asking["sampling_params"] = {"max_completion_tokens": 4}
    run, other = (client.evals.runs.create(made.id, data_source=asking, name=str(n)) for n in range(2))
    try:
        assert client.evals.runs.cancel(other.id, eval_id=made.id).status == "canceled"
    except openai.BadRequestError:  # it was faster
        assert client.evals.runs.retrieve(other.id, eval_id=made.id).status == "completed"
    deadline = time.monotonic() + 120
    while client.evals.runs.retrieve(run.id, eval_id=made.id).status not in {"completed", "failed", "canceled"}:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    done = client.evals.runs.retrieve(run.id, eval_id=made.id)
    assert (done.status, done.result_counts.total, done.result_counts.errored) == ("completed", 3, 0), done
    assert done.per_model_usage[0].invocation_count == 3 and done.error.code == ""
    assert [one.id for one in client.evals.runs.list(made.id, limit=1)] == [run.id, other.id]
    items = list(client.evals.runs.output_items.list(run.id, eval_id=made.id, limit=1))
    assert [one.datasource_item["thing"] for one in items] == ["sky", "grass", "snow"]
    again = client.evals.runs.output_items.retrieve(items[0].id, eval_id=made.id, run_id=run.id)
    assert again.sample.usage.completion_tokens > 0
    assert client.evals.runs.delete(other.id, eval_id=made.id).run_id == other.id
    assert client.evals.delete(made.id).deleted
    refused(lambda: client.evals.retrieve(made.id), openai.NotFoundError)


def webhooks(client: Any) -> None:
    secret = b"a key of thirty-two random bytes"
    event = {
        "id": "evt_1",
        "object": "event",
        "created_at": 1,
        "type": "fine_tuning.job.succeeded",
        "data": {"id": JOB},
    }
    body, stamp = json.dumps(event), str(int(time.time()))
    digest = hmac.digest(secret, f"wh_1.{stamp}.{body}".encode(), "sha256")
    headers = {"webhook-id": "wh_1", "webhook-timestamp": stamp}
    headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    encoded = f"whsec_{base64.b64encode(secret).decode()}"
    assert client.webhooks.unwrap(body, headers, secret=encoded).data.id == JOB
    if not hasattr(client.webhooks, "create"):
        return  # openai 2.x verifies, but does not manage
    types: Any = ["fine_tuning.job.succeeded", "batch.completed"]
    endpoint = client.webhooks.create(name="walk", url="https://example.com/hook", event_types=types)
    assert endpoint.signing_secret.startswith("whsec_")
    assert client.webhooks.retrieve(endpoint.id).url == "https://example.com/hook"
    assert client.webhooks.update(endpoint.id, name="renamed").name == "renamed"
    assert endpoint.id in [item.id for item in client.webhooks.list()]
    assert client.webhooks.rotate_secret(endpoint.id).signing_secret != endpoint.signing_secret
    assert client.webhooks.delete(endpoint.id).deleted
    refused(lambda: client.webhooks.retrieve(endpoint.id), openai.NotFoundError)


def walk(client: Any) -> None:
    training_file = files(client)
    uploads(client)
    jobs(client, training_file)
    finished_job(client)
    permissions(client, os.environ["OTHER_PROJECT"])
    models(client)
    chat(client)
    stored_chat(client)
    completions(client)
    responses(client)
    aliases(client)
    batches(client)
    evals(client)
    webhooks(client)
    refused(lambda: openai.OpenAI(api_key="wrong", max_retries=0).models.list(), openai.AuthenticationError)


if __name__ == "__main__":
    walk(make_client(sys.argv[1]))
    print(f"openai {openai.__version__} {sys.argv[1]}: walked")
