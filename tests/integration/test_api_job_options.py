"""Fine-tuning jobs beyond the plain ones: DPO, our options, models to go on from, idempotency keys, pausing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from msgspec.structs import replace

from shared.schemas.methods import SupervisedHyperparameters
from shared.states import JobState
from shared.store.client import Client
from shared.store.jobs import JobStore
from shared.store.registry import Registry
from tests.api_server import BASE, ApiServer, know_key, make_adapter, make_base, with_store

PARENT = f"ft:{BASE}:acme::parent00"


@pytest.fixture
def sdk(api: ApiServer, redis_url: str) -> openai.OpenAI:
    with_store(redis_url, lambda client: Registry(client).put_base(make_base()))
    with_store(redis_url, lambda client: Registry(client).publish(make_adapter(PARENT, rank=8)))
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0)


@pytest.fixture
def create(sdk: openai.OpenAI) -> Callable[..., Any]:
    training_file = sdk.files.create(file=("train.jsonl", b"{}\n"), purpose="fine-tune").id

    def make(**fields: Any) -> Any:
        return sdk.fine_tuning.jobs.create(**{"model": BASE, "training_file": training_file, **fields})

    return make


def move(redis_url: str, job_id: str, *states: JobState) -> None:
    """Take a job through `states` as its workers would."""

    async def go(client: Client) -> None:
        for state in states:
            await JobStore(client).update(
                job_id,
                lambda record, state=state: replace(record, status=state, resolved=SupervisedHyperparameters()),  # type: ignore[misc]
            )

    with_store(redis_url, go)


OWN_METHODS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"type": "kto", "kto": {"hyperparameters": {"beta": 0.2, "n_epochs": 2, "desirable_weight": 1.5}}},
        {"type": "kto", "kto": {"hyperparameters": {
            "n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": "auto", "beta": 0.2,
            "desirable_weight": 1.5, "undesirable_weight": "auto",
        }}},
    ),
    (
        {"type": "orpo"},
        {"type": "orpo", "orpo": {"hyperparameters": {
            "n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto", "beta": "auto",
        }}},
    ),
    (
        {"type": "reward", "reward": {"hyperparameters": {"batch_size": 8}}, "kto": {}},
        {"type": "reward", "reward": {"hyperparameters": {
            "n_epochs": "auto", "batch_size": 8, "learning_rate_multiplier": "auto",
        }}},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "shown"), OWN_METHODS)
def test_own_methods_are_shown_beside_openai_s_fields(
    create: Callable[..., Any], sdk: openai.OpenAI, asked: dict[str, Any], shown: dict[str, Any]
) -> None:
    job = create(extra_body={"selftune": {"method": asked}})
    strict = openai.OpenAI(base_url=sdk.base_url, api_key=sdk.api_key, _strict_response_validation=True)
    parsed = strict.fine_tuning.jobs.retrieve(job.id)
    assert parsed.method is None and "method" not in parsed.to_dict()
    assert parsed.selftune["method"] == shown  # type: ignore[attr-defined]
    again = create(extra_body={"selftune": parsed.selftune})  # type: ignore[attr-defined]
    assert again.selftune["method"] == shown


WRONG_METHODS: list[tuple[dict[str, Any], str]] = [
    ({"method": {"type": "kto", "kto": {"hyperparameters": {"beta": 9}}}}, "selftune.method.kto.hyperparameters.beta"),
    ({"method": {"type": "kto", "kto": {"hyperparameters": {"desirable_weight": 0}}}},
     "selftune.method.kto.hyperparameters.desirable_weight"),
    ({"method": {"type": "grpo"}}, "selftune.method.type"),
    ({"method": {}}, "selftune.method.type"),
    ({"method": {"type": "reward"}, "finetuning_type": "full"}, "selftune.finetuning_type"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "param"), WRONG_METHODS)
def test_wrong_values_of_own_methods_are_named(create: Callable[..., Any], options: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(extra_body={"selftune": options})
    assert caught.value.param == param


def test_two_methods_at_once_are_refused(create: Callable[..., Any]) -> None:
    with pytest.raises(openai.BadRequestError, match="has a 'method' too") as caught:
        create(method={"type": "dpo"}, extra_body={"selftune": {"method": {"type": "kto"}}})
    assert caught.value.param == "selftune.method"


def test_reward_model_neither_writes_nor_is_gone_on_from(
    create: Callable[..., Any], sdk: openai.OpenAI, redis_url: str
) -> None:
    name = f"ft:{BASE}:acme:judge:reward00"

    async def offer(client: Client) -> None:
        registry = Registry(client)
        await registry.publish(make_adapter(name, kind="reward"))
        _, served = await registry.snapshot(BASE)
        assert name not in {adapter.name for adapter in served}
        assert name in {adapter.name for adapter in await registry.on_base(BASE)}
        _, changes = await registry.changes("0-0", block_ms=1)
        assert [change.base for change in changes if change.name == name] == [name], "no server of the base is told"

    with_store(redis_url, offer)
    assert name in {model.id for model in sdk.models.list()}
    with pytest.raises(openai.BadRequestError, match="is a reward model: it scores answers") as caught:
        sdk.chat.completions.create(model=name, messages=[{"role": "user", "content": "dog?"}])
    assert (caught.value.code, caught.value.param) == ("unsupported_endpoint", "model")
    with pytest.raises(openai.BadRequestError, match="training does not go on from one") as caught:
        create(model=name)
    assert caught.value.param == "model"
    sdk.models.delete(name)
    assert name not in {model.id for model in sdk.models.list()}


def test_dpo_job_shows_its_method(create: Callable[..., Any]) -> None:
    job = create(method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 2}}})
    shared = {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": "auto"}
    assert job.method.to_dict() == {"type": "dpo", "dpo": {"hyperparameters": {**shared, "beta": 0.2}}}
    assert job.hyperparameters.to_dict() == shared
    plain = create(method={"type": "dpo"}, hyperparameters={"n_epochs": 4})
    assert (plain.method.dpo.hyperparameters.beta, plain.method.dpo.hyperparameters.n_epochs) == ("auto", 4)


def test_every_method_of_the_sdks_own_example_may_stand_beside(create: Callable[..., Any]) -> None:
    grader = {"type": "string_check", "name": "n", "input": "i", "operation": "eq", "reference": "r"}
    job = create(
        method={"type": "supervised", "supervised": {}, "dpo": {}, "reinforcement": {"grader": grader}},
        hyperparameters={"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"},
    )
    assert job.method.to_dict().keys() == {"type", "supervised"}


def test_options_are_echoed(create: Callable[..., Any]) -> None:
    job = create(extra_body={"selftune": {"rank": 4, "target_modules": ["q_proj"], "priority": "high"}})
    shown = {name: value for name, value in job.to_dict()["selftune"].items() if value is not None}
    assert shown == {"rank": 4, "target_modules": ["q_proj"], "priority": "high"}


def test_options_that_a_job_shows_may_be_sent_again(create: Callable[..., Any], sdk: openai.OpenAI) -> None:
    first = create(extra_body={"selftune": {"rank": 4, "overlong": "drop"}})
    again = create(extra_body={"selftune": {**first.selftune, "estimated_memory_bytes": 3, "waiting_reason": "none"}})
    assert again.selftune == first.selftune


def test_wandb_integration_is_shown(create: Callable[..., Any]) -> None:
    job = create(integrations=[{"type": "wandb", "wandb": {"project": "mine", "tags": ["a"]}}])
    assert [item.to_dict() for item in job.integrations] == [
        {"type": "wandb", "wandb": {"project": "mine", "tags": ["a"]}}
    ]


def test_job_goes_on_from_a_fine_tuned_model(create: Callable[..., Any], redis_url: str) -> None:
    job = create(model=PARENT)
    assert job.model == PARENT
    record = with_store(redis_url, lambda client: JobStore(client).get(job.id))
    assert (record.model, record.parent) == (BASE, PARENT)
    assert record.model_name.startswith(f"ft:{BASE}:acme::")


@pytest.mark.parametrize("options", [{"rank": 4}, {"alpha": 4}, {"target_modules": ["q_proj"]}, {"use_rslora": True}])
def test_adapter_shape_comes_from_the_model_it_goes_on_from(
    create: Callable[..., Any], options: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(model=PARENT, extra_body={"selftune": options})
    assert caught.value.param == f"selftune.{next(iter(options))}"
    assert create(model=PARENT, extra_body={"selftune": {"rank": 8}}).id


@pytest.mark.parametrize(
    "beside",
    [
        {"rank": 4}, {"alpha": 4}, {"target_modules": ["q_proj"]}, {"use_rslora": True}, {"dropout": 0.1},
        {"quantization": "nf4"}, {"dtype": "bfloat16"},
    ],
)  # fmt: skip
def test_full_fine_tuning_refuses_what_only_an_adapter_has(create: Callable[..., Any], beside: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match="finetuning_type 'full'") as caught:
        create(extra_body={"selftune": {"finetuning_type": "full", **beside}})
    assert caught.value.param == f"selftune.{next(iter(beside))}"
    job = create(extra_body={"selftune": {"finetuning_type": "full", "quantization": "none", "dtype": "float32"}})
    assert job.selftune["finetuning_type"] == "full"


def test_full_fine_tuning_does_not_go_on_from_an_adapter(create: Callable[..., Any]) -> None:
    with pytest.raises(openai.BadRequestError, match="goes on from an adapter") as caught:
        create(model=PARENT, extra_body={"selftune": {"finetuning_type": "full"}})
    assert caught.value.param == "selftune.finetuning_type"


@pytest.fixture(scope="module")
def aliased(api_process: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A second API on the same database, with aliases and the other way to show paused jobs."""
    server = ApiServer(
        tmp_path_factory.mktemp("aliased"),
        api_process.settings.redis_url,
        model_aliases={"gpt-4o-mini-2024-07-18": BASE, "ft:gpt-4o:old::1": PARENT, "nowhere": "missing"},
        paused_as="queued",
    )
    yield server
    server.stop()


def test_alias_stands_for_a_model(aliased: ApiServer, sdk: openai.OpenAI, redis_url: str) -> None:
    know_key(redis_url, aliased.key)
    client = openai.OpenAI(base_url=f"{aliased.url}/v1", api_key=aliased.key, max_retries=0)
    training_file = client.files.create(file=("train.jsonl", b"{}\n"), purpose="fine-tune").id
    jobs = client.fine_tuning.jobs
    assert jobs.create(model="gpt-4o-mini-2024-07-18", training_file=training_file).model == BASE
    assert jobs.create(model="ft:gpt-4o:old::1", training_file=training_file).model == PARENT
    with pytest.raises(openai.NotFoundError) as caught:
        jobs.create(model="nowhere", training_file=training_file)
    assert "'nowhere'" in caught.value.message
    paused = jobs.pause(jobs.list().data[0].id)
    assert paused.status == "queued" and jobs.retrieve(paused.id).status == "queued"
    assert jobs.resume(paused.id).status == "validating_files"


def test_idempotency_key_gives_the_same_job(create: Callable[..., Any], sdk: openai.OpenAI) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: create(suffix="a", extra_headers={"Idempotency-Key": "k1"}).id, range(8)))
    assert len(set(made)) == 1
    assert [job.id for job in sdk.fine_tuning.jobs.list()] == [made[0]]
    assert [item.message for item in sdk.fine_tuning.jobs.list_events(made[0])] == [
        f"Created fine-tuning job: {made[0]}"
    ]
    assert create(suffix="a", extra_headers={"Idempotency-Key": "k2"}).id != made[0]


def test_idempotency_key_with_another_body_is_409_and_not_retried(create: Callable[..., Any], api: ApiServer) -> None:
    headers = {"Idempotency-Key": "k"}
    create(suffix="a", extra_headers=headers)
    with pytest.raises(openai.ConflictError) as caught:
        create(suffix="b", extra_headers=headers)
    assert (caught.value.code, caught.value.param) == ("idempotency_key_reused", "Idempotency-Key")
    assert caught.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.BadRequestError):
        create(extra_headers={"Idempotency-Key": "k" * 256})


def test_refused_request_may_be_repeated_with_its_key(create: Callable[..., Any], redis_url: str) -> None:
    """A refusal creates nothing, so the key still stands for a job to come."""
    late = f"ft:{BASE}:acme::late0000"
    with pytest.raises(openai.NotFoundError):
        create(model=late, extra_headers={"Idempotency-Key": "k"})
    with_store(redis_url, lambda client: Registry(client).publish(make_adapter(late)))
    assert create(model=late, extra_headers={"Idempotency-Key": "k"}).model == late


def test_pause_and_resume(create: Callable[..., Any], sdk: openai.OpenAI, redis_url: str) -> None:
    jobs, job = sdk.fine_tuning.jobs, create()
    assert str(jobs.pause(job.id).status) == "paused" and str(jobs.pause(job.id).status) == "paused"
    assert jobs.resume(job.id).status == "validating_files"
    move(redis_url, job.id, JobState.QUEUED, JobState.RUNNING)
    assert str(jobs.pause(job.id).status) == "paused"
    assert jobs.resume(job.id).status == "queued"
    assert [item.message for item in jobs.list_events(job.id)][:4] == [
        "The job was resumed", "The job was paused", "The job was resumed", "The job was paused",
    ]  # fmt: skip
    jobs.pause(job.id)
    assert jobs.cancel(job.id).status == "cancelled"


@pytest.mark.parametrize("ended", [JobState.SUCCEEDED, JobState.FAILED])
def test_ended_job_is_neither_paused_nor_resumed(
    create: Callable[..., Any], sdk: openai.OpenAI, redis_url: str, ended: JobState
) -> None:
    job = create()
    move(redis_url, job.id, JobState.QUEUED, JobState.RUNNING, ended)
    for call in (sdk.fine_tuning.jobs.pause, sdk.fine_tuning.jobs.resume):
        with pytest.raises(openai.BadRequestError) as caught:
            call(job.id)
        assert caught.value.code == "invalid_job_state" and ended.value in caught.value.message


def test_only_a_paused_job_is_resumed(create: Callable[..., Any], sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.fine_tuning.jobs.resume(create().id)
    assert "only a paused job" in caught.value.message


def test_ended_jobs_are_noted_once(create: Callable[..., Any], sdk: openai.OpenAI, redis_url: str) -> None:
    job = create()
    for _ in range(2):
        sdk.fine_tuning.jobs.cancel(job.id)
    noted = with_store(redis_url, lambda client: client.call("ZRANGE", "selftune:outcomes", 0, -1))
    assert noted == [f"{job.id} cancelled".encode()]


@pytest.mark.parametrize(
    ("options", "fields", "option", "reason"),
    [
        ({"evaluation_interval": 5}, {}, "evaluation_interval", "validation_file"),
        ({"gradient_accumulation_steps": 8}, {"batch_size": 4}, "gradient_accumulation_steps", "4 rows"),
        ({"checkpoint_interval": 0}, {}, "checkpoint_interval", "1"),
        ({"neftune_noise_alpha": 0}, {}, "neftune_noise_alpha", "0"),
        ({"dtype": "float16"}, {}, "dtype", "float16"),
        ({"mlflow": {"experiment": "pets"}}, {}, "mlflow", "mlflow_tracking_uri"),
    ],
)
def test_options_of_the_run_are_checked(
    create: Callable[..., Any], options: dict[str, Any], fields: dict[str, Any], option: str, reason: str
) -> None:
    method = {"type": "supervised", "supervised": {"hyperparameters": fields}}
    with pytest.raises(openai.BadRequestError) as caught:
        create(method=method, extra_body={"selftune": options})
    assert caught.value.param == f"selftune.{option}" and reason in caught.value.message


def test_priority_before_all_projects_is_for_administrators(api: ApiServer, create: Callable[..., Any]) -> None:
    with api.client() as admin:
        scopes = {"name": "team", "selftune": {"scopes": ["read", "train"]}}
        key = admin.post("/v1/organization/projects/proj_default/api_keys", json=scopes).json()["value"]
    training_file = create().training_file
    with api.client(key) as http:
        for priority, status in (("high", 403), ("normal", 200), ("low", 200)):
            body = {"model": BASE, "training_file": training_file, "selftune": {"priority": priority}}
            answer = http.post("/v1/fine_tuning/jobs", json=body)
            assert answer.status_code == status
            if status == 403:
                error = answer.json()["error"]
                assert (error["code"], error["param"]) == ("insufficient_permissions", "selftune.priority")
