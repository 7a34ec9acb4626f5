"""Fine-tuning jobs through the SDK: create, refuse, page, cancel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest
import redis
from msgspec.structs import replace

from shared import ids
from shared.queue import VALIDATE_QUEUE
from shared.schemas.checkpoints import Checkpoint, CheckpointMetrics
from shared.schemas.options import ShownOptions
from shared.states import JobState
from shared.store.client import Client
from shared.store.jobs import JobStore, event
from shared.store.registry import Registry
from tests.api_server import BASE, ApiServer, know_key, make_base, with_store

NO_OPTIONS = dict.fromkeys(ShownOptions.__struct_fields__)


def dpo(**hyperparameters: Any) -> dict[str, Any]:
    return {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}


@pytest.fixture
def sdk(api: ApiServer, redis_url: str) -> openai.OpenAI:
    with_store(redis_url, lambda client: Registry(client).put_base(make_base()))
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0)


@pytest.fixture
def training_file(sdk: openai.OpenAI) -> str:
    return sdk.files.create(file=("train.jsonl", b"{}\n"), purpose="fine-tune").id


@pytest.fixture
def validation_file(sdk: openai.OpenAI) -> str:
    return sdk.files.create(file=("valid.jsonl", b"{}\n"), purpose="fine-tune").id


def refused(
    call: Callable[[], Any], kind: type[openai.APIStatusError] = openai.BadRequestError
) -> tuple[Any, Any, str]:
    """Return param, code and message of the error that `call` raises."""
    with pytest.raises(kind) as caught:
        call()
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "invalid_request_error"
    return caught.value.param, caught.value.code, caught.value.body["message"]


def test_created_job_shows_what_was_asked_for(
    sdk: openai.OpenAI, training_file: str, validation_file: str, redis_url: str
) -> None:
    job = sdk.fine_tuning.jobs.create(
        model=BASE,
        training_file=training_file,
        validation_file=validation_file,
        suffix="my model",
        seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}}},
        metadata={"team": "a"},
    )
    shown = job.to_dict()
    effective = {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": "auto"}
    assert shown.pop("id").startswith("ftjob-")  # type: ignore[attr-defined]
    assert shown.pop("created_at")
    assert shown == {
        "object": "fine_tuning.job",
        "model": BASE,
        "status": "validating_files",
        "organization_id": "org-acme",
        "training_file": training_file,
        "validation_file": validation_file,
        "hyperparameters": effective,
        "method": {"type": "supervised", "supervised": {"hyperparameters": effective}},
        "seed": 7,
        "metadata": {"team": "a"},
        "user_provided_suffix": "my model",
        "result_files": [],
        "integrations": [],
        "selftune": NO_OPTIONS,
        "fine_tuned_model": None,
        "finished_at": None,
        "estimated_finish": None,
        "trained_tokens": None,
        "error": None,
    }
    assert [item.message for item in sdk.fine_tuning.jobs.list_events(job.id)] == [f"Created fine-tuning job: {job.id}"]
    record = with_store(redis_url, lambda client: JobStore(client).get(job.id))
    assert record.model_name.startswith(f"ft:{BASE}:acme:my-model:")
    with redis.Redis.from_url(redis_url) as client:
        assert client.zrange(VALIDATE_QUEUE, 0, -1) == [f"validate:{job.id}".encode()]


def test_absent_options_get_defaults(sdk: openai.OpenAI, training_file: str) -> None:
    first = sdk.fine_tuning.jobs.create(model=BASE, training_file=training_file, suffix=None, integrations=None)
    second = sdk.fine_tuning.jobs.create(model=BASE, training_file=training_file)
    assert first.seed != second.seed
    assert first.hyperparameters.n_epochs == "auto"


def test_old_hyperparameters_count_unless_method_says_otherwise(sdk: openai.OpenAI, training_file: str) -> None:
    create = sdk.fine_tuning.jobs.create
    old = create(model=BASE, training_file=training_file, hyperparameters={"n_epochs": 3})
    both = create(
        model=BASE,
        training_file=training_file,
        hyperparameters={"n_epochs": 3},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 5}}, "dpo": {}},
    )
    assert (old.hyperparameters.n_epochs, both.hyperparameters.n_epochs) == (3, 5)


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"model": 5}, "model", "invalid_value"),
        ({"model": ""}, "model", "invalid_value"),
        ({"training_file": None}, "training_file", "invalid_value"),
        ({"suffix": "x" * 65}, "suffix", "invalid_value"),
        ({"suffix": ""}, "suffix", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"seed": "7"}, "seed", "invalid_value"),
        ({"seed": 7.5}, "seed", "invalid_value"),
        ({"seed": True}, "seed", "invalid_value"),
        ({"seed": 10**30}, "seed", "invalid_value"),
        ({"metadata": {"a": 1}}, "metadata", "invalid_value"),
        ({"metadata": {"k" * 65: "v"}}, "metadata", "invalid_value"),
        ({"metadata": {str(n): "v" for n in range(17)}}, "metadata", "invalid_value"),
        ({"metadata": []}, "metadata", "invalid_value"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "invalid_value"),
        ({"hyperparameters": {"batch_size": "big"}}, "hyperparameters.batch_size", "invalid_value"),
        (
            {"hyperparameters": {"learning_rate_multiplier": 0}},
            "hyperparameters.learning_rate_multiplier",
            "invalid_value",
        ),
        (
            {"hyperparameters": {"learning_rate_multiplier": 10**400}},
            "hyperparameters.learning_rate_multiplier",
            "invalid_value",
        ),
        (
            {"method": dpo(learning_rate_multiplier=-1)},
            "method.dpo.hyperparameters.learning_rate_multiplier",
            "invalid_value",
        ),
        ({"hyperparameters": {"colour": 1}}, "hyperparameters.colour", "unknown_parameter"),
        ({"method": {}}, "method.type", "missing_required_parameter"),
        ({"method": {"type": "magic"}}, "method.type", "invalid_value"),
        ({"method": {"type": "supervised", "magic": {}}}, "method.magic", "unknown_parameter"),
        ({"method": None, "hyperparameters": 5}, "hyperparameters", "invalid_value"),
        ({"method": dpo(beta=0)}, "method.dpo.hyperparameters.beta", "invalid_value"),
        ({"method": dpo(beta=2.5)}, "method.dpo.hyperparameters.beta", "invalid_value"),
        ({"method": dpo(gamma=1)}, "method.dpo.hyperparameters.gamma", "unknown_parameter"),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 99}}}},
            "method.supervised.hyperparameters.n_epochs",
            "invalid_value",
        ),
        (
            {"integrations": [{"type": "wandb", "wandb": {}}]},
            "integrations[0].wandb.project",
            "missing_required_parameter",
        ),
        ({"integrations": [{"type": "mlflow"}]}, "integrations[0].type", "invalid_value"),
        ({"integrations": [5]}, "integrations[0]", "invalid_value"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}] * 6}, "integrations", "invalid_value"),
        ({"selftune": {"rank": 0}}, "selftune.rank", "invalid_value"),
        ({"selftune": {"rank": 17}}, "selftune.rank", "rank_not_servable"),
        ({"selftune": {"colour": 1}}, "selftune.colour", "unknown_parameter"),
        ({"selftune": {"target_modules": []}}, "selftune.target_modules", "invalid_value"),
        ({"selftune": {"target_modules": ["lm_head"]}}, "selftune.target_modules[0]", "invalid_value"),
        ({"selftune": {"dropout": 1}}, "selftune.dropout", "invalid_value"),
        ({"selftune": {"max_length": 4096}}, "selftune.max_length", "invalid_value"),
        ({"selftune": {"early_stopping": {}}}, "selftune.early_stopping", "invalid_value"),
        ({"selftune": {"quantization": "int3"}}, "selftune.quantization", "invalid_value"),
        ({"selftune": {"priority": 5}}, "selftune.priority", "invalid_value"),
        ({"selftune": []}, "selftune", "invalid_value"),
        ({"colour": "red"}, "colour", "unknown_parameter"),
    ],
)
def test_wrong_field_is_named(
    sdk: openai.OpenAI, training_file: str, changes: dict[str, Any], param: str, code: str | None
) -> None:
    body = {"model": BASE, "training_file": training_file, **changes}
    got_param, got_code, message = refused(lambda: sdk.post("/fine_tuning/jobs", body=body, cast_to=object))
    assert (got_param, got_code) == (param, code), message
    assert sdk.fine_tuning.jobs.list().data == []


@pytest.mark.parametrize("multiplier", [1e-300, 101, 250.5, 1.7e308])
def test_learning_rate_multiplier_has_no_maximum(sdk: openai.OpenAI, training_file: str, multiplier: float) -> None:
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"learning_rate_multiplier": multiplier}}}
    job = sdk.fine_tuning.jobs.create(model=BASE, training_file=training_file, method=method)
    assert job.hyperparameters.learning_rate_multiplier == multiplier
    assert sdk.fine_tuning.jobs.retrieve(job.id) == job


def test_infinite_number_is_refused(api: ApiServer, sdk: openai.OpenAI, training_file: str) -> None:
    body = (
        f'{{"model":"{BASE}","training_file":"{training_file}","hyperparameters":{{"learning_rate_multiplier":1e400}}}}'
    )
    with api.client() as http:
        answer = http.post("/v1/fine_tuning/jobs", content=body, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "hyperparameters.learning_rate_multiplier")
    assert sdk.fine_tuning.jobs.list().data == []


def test_missing_field_is_named(sdk: openai.OpenAI) -> None:
    param, code, message = refused(lambda: sdk.post("/fine_tuning/jobs", body={"model": BASE}, cast_to=object))
    assert (param, code) == ("training_file", "missing_required_parameter")
    assert message == "Missing required parameter: 'training_file'."


def test_unknown_model_and_files_are_404(
    sdk: openai.OpenAI, training_file: str, api: ApiServer, redis_url: str
) -> None:
    def create(**fields: Any) -> Callable[[], Any]:
        return lambda: sdk.fine_tuning.jobs.create(**{"model": BASE, "training_file": training_file, **fields})

    missing = openai.NotFoundError
    assert refused(create(model="gpt-nowhere"), missing)[:2] == ("model", "model_not_found")
    assert refused(create(training_file="file-x"), missing)[0] == "training_file"
    assert refused(create(validation_file="file-x"), missing)[0] == "validation_file"
    foreign = openai.OpenAI(
        base_url=f"{api.url}/v1", api_key=know_key(redis_url, "sk-of-somebody-else", project="proj_other")
    )
    stranger = refused(lambda: foreign.fine_tuning.jobs.create(model=BASE, training_file=training_file), missing)
    assert stranger[2] == f"No such File object: {training_file}"


def test_unsuitable_files_are_refused(sdk: openai.OpenAI, training_file: str) -> None:
    create = sdk.fine_tuning.jobs.create
    other = sdk.files.create(file=("a.txt", b"x"), purpose="assistants").id
    assert refused(lambda: create(model=BASE, training_file=other))[:2] == ("training_file", "invalid_file_purpose")
    same = refused(lambda: create(model=BASE, training_file=training_file, validation_file=training_file))
    assert same[0] == "validation_file"


def test_rank_that_cannot_be_served_is_refused(api: ApiServer, redis_url: str, tmp_path: Any) -> None:
    server = ApiServer(tmp_path, redis_url, lora_rank=64, max_lora_rank=16)
    try:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key)
        with_store(redis_url, lambda store: Registry(store).put_base(make_base()))
        _, code, message = refused(lambda: client.fine_tuning.jobs.create(model=BASE, training_file="file-x"))
        assert code == "rank_not_servable" and "64" in message and "16" in message
    finally:
        server.stop()


def make_jobs(sdk: openai.OpenAI, training_file: str, count: int) -> list[str]:
    create = sdk.fine_tuning.jobs.create
    return [create(model=BASE, training_file=training_file, metadata={"n": str(n)}).id for n in range(count)]


def test_jobs_are_paged_newest_first(sdk: openai.OpenAI, training_file: str) -> None:
    made = make_jobs(sdk, training_file, 5)
    assert [job.id for job in sdk.fine_tuning.jobs.list(limit=2)] == made[::-1]
    page = sdk.fine_tuning.jobs.list(limit=2, after=made[4])
    assert ([job.id for job in page.data], page.has_more) == ([made[3], made[2]], True)
    last = sdk.fine_tuning.jobs.list(limit=2, after=made[2])
    assert ([job.id for job in last.data], last.has_more) == ([made[1], made[0]], False)


def test_jobs_are_found_by_metadata(sdk: openai.OpenAI, training_file: str) -> None:
    made = make_jobs(sdk, training_file, 3)
    bare = sdk.fine_tuning.jobs.create(model=BASE, training_file=training_file).id
    found = sdk.fine_tuning.jobs.list(metadata={"n": "1"})
    assert [job.id for job in found] == [made[1]]
    assert [job.id for job in sdk.fine_tuning.jobs.list(metadata={"n": "1", "m": ""})] == []
    assert [job.id for job in sdk.fine_tuning.jobs.list(extra_query={"metadata": "null"})] == [bare]


def test_events_are_paged_newest_first(sdk: openai.OpenAI, training_file: str, redis_url: str) -> None:
    job = sdk.fine_tuning.jobs.create(model=BASE, training_file=training_file)
    lines = [event(f"Step {n}/4", type="metrics", data={"step": n, "train_loss": 0.5}) for n in range(1, 5)]
    with_store(redis_url, lambda client: JobStore(client).append_events(job.id, lines))
    shown = list(sdk.fine_tuning.jobs.list_events(job.id, limit=2))
    assert [item.message for item in shown] == ["Step 4/4", "Step 3/4", "Step 2/4", "Step 1/4", shown[-1].message]
    assert shown[0].data == {"step": 4, "train_loss": 0.5}
    assert len({item.id for item in shown}) == 5
    assert sdk.fine_tuning.jobs.list_events(job.id, after=shown[-1].id).data == []


def test_event_to_list_after_must_be_the_jobs(sdk: openai.OpenAI, training_file: str) -> None:
    job, other = (sdk.fine_tuning.jobs.create(model=BASE, training_file=training_file).id for _ in range(2))
    theirs = sdk.fine_tuning.jobs.list_events(other).data[0].id
    last = f"ftevent-{2**64 - 1}-{2**64 - 1}"
    for after in ("ftevent-nonsense", "nonsense", "ftevent-1-2-3", "ftevent-5-5", last, theirs):
        with pytest.raises(openai.NotFoundError) as refused:
            sdk.fine_tuning.jobs.list_events(job, after=after)
        assert refused.value.param == "after"


def test_checkpoints_are_paged_newest_first(sdk: openai.OpenAI, training_file: str, redis_url: str) -> None:
    job = sdk.fine_tuning.jobs.create(model=BASE, training_file=training_file)
    steps = [
        Checkpoint(
            id=ids.new_checkpoint_id(),
            created_at=1_700_000_000 + step,
            fine_tuning_job_id=job.id,
            fine_tuned_model_checkpoint=f"ft:x:ckpt-step-{step}",
            step_number=step,
            metrics=CheckpointMetrics(step=step, train_loss=0.25),
        )
        for step in (10, 20, 30)
    ]

    async def record(client: Client) -> None:
        for step in steps:
            await JobStore(client).append_checkpoint(step)

    with_store(redis_url, record)
    shown = list(sdk.fine_tuning.jobs.checkpoints.list(job.id, limit=2))
    assert [item.step_number for item in shown] == [30, 20, 10]
    assert shown[0].metrics.train_loss == 0.25
    with pytest.raises(openai.NotFoundError):
        sdk.fine_tuning.jobs.checkpoints.list(job.id, after="ftckpt_unknown")


def test_cancel_stops_at_once_and_twice_is_once(sdk: openai.OpenAI, training_file: str) -> None:
    job = sdk.fine_tuning.jobs.create(model=BASE, training_file=training_file)
    first = sdk.fine_tuning.jobs.cancel(job.id)
    assert first.status == "cancelled" and first.finished_at
    assert sdk.fine_tuning.jobs.cancel(job.id).to_dict() == first.to_dict()
    messages = [item.message for item in sdk.fine_tuning.jobs.list_events(job.id)]
    assert messages == ["The job was cancelled", f"Created fine-tuning job: {job.id}"]


@pytest.mark.parametrize("status", [JobState.FAILED, JobState.SUCCEEDED])
def test_finished_job_cannot_be_cancelled(
    sdk: openai.OpenAI, training_file: str, redis_url: str, status: JobState
) -> None:
    job = sdk.fine_tuning.jobs.create(model=BASE, training_file=training_file)

    async def end(client: Client) -> None:
        for state in (JobState.QUEUED, JobState.RUNNING, status):
            await JobStore(client).update(job.id, lambda record, state=state: replace(record, status=state))  # type: ignore[misc]

    with_store(redis_url, end)
    _, code, message = refused(lambda: sdk.fine_tuning.jobs.cancel(job.id))
    assert code == "invalid_job_state" and status.value in message


def test_unknown_and_foreign_jobs_are_404(
    sdk: openai.OpenAI, training_file: str, api: ApiServer, redis_url: str
) -> None:
    job = sdk.fine_tuning.jobs.create(model=BASE, training_file=training_file)
    foreign = openai.OpenAI(
        base_url=f"{api.url}/v1", api_key=know_key(redis_url, "sk-of-somebody-else", project="proj_other")
    )
    assert foreign.fine_tuning.jobs.list().data == []
    for client, job_id in ((sdk, "ftjob-unknown"), (foreign, job.id)):
        calls = client.fine_tuning.jobs
        for call in (calls.retrieve, calls.cancel, calls.list_events, calls.checkpoints.list):
            param, code, message = refused(lambda call=call, job_id=job_id: call(job_id), openai.NotFoundError)  # type: ignore[misc]
            assert (param, code) == ("fine_tune_id", "fine_tune_not_found")
            assert message == f"Could not find fine tune: {job_id}"


def test_async_sdk_creates_many_jobs_at_once(sdk: openai.OpenAI, training_file: str, api: ApiServer) -> None:
    async def create() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key=api.key) as client:
            calls = [client.fine_tuning.jobs.create(model=BASE, training_file=training_file) for _ in range(20)]
            return [job.id for job in await asyncio.gather(*calls)]

    made = asyncio.run(create())
    assert {job.id for job in sdk.fine_tuning.jobs.list(limit=7)} == set(made)
