"""Sweeps in the API alone: jobs are brought to their ends by hand, models answered for by a stand-in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from msgspec.structs import replace

from services.api.deps import Services
from services.api.sweeps.ranking import validation_value
from shared import ids
from shared.flow_states import FlowState
from shared.records import FileRecord, JobRecord, KeyRecord
from shared.schemas.checkpoints import Checkpoint, CheckpointMetrics
from shared.schemas.jobs import JobError
from shared.schemas.methods import SupervisedHyperparameters
from shared.schemas.sweeps import CreateSweep, SweepOptions
from shared.settings import Settings
from shared.states import JobState
from shared.store.client import Client
from shared.store.jobs import JobStore, event
from shared.store.registry import Registry
from shared.sweep_records import SweepRecord
from tests.api_server import BASE, NO_METRICS, ApiServer, make_adapter, make_base, wait_until, with_store
from tests.batch_requests import prompt_of, serve
from tests.eval_scene import QUESTION, Speaker, adds, content, make_eval, rows, spoken
from tests.integration.test_api_limits import new_key, new_project

SWEEPS = "/v1/fine_tuning/sweeps"


class Graduated(Speaker):
    """Knows the sums below the number that its model's name ends with."""

    def _whole(self, request: dict[str, Any]) -> bytes:
        right = adds(prompt_of(request))
        knows = int(right) // 2 < int(request["model"].rpartition("-")[2])
        return spoken(request["model"], right if knows else "no idea")


@pytest.fixture
def upstream() -> Iterator[Speaker]:
    with Graduated() as server:
        yield server


@pytest.fixture
def http(api: ApiServer, redis_url: str, upstream: Speaker) -> Iterator[httpx2.Client]:
    serve(redis_url, upstream)
    with api.client() as client:
        yield client


def upload(http: httpx2.Client) -> str:
    answer = http.post("/v1/files", files={"file": ("a.jsonl", b"{}\n")}, data={"purpose": "fine-tune"})
    return str(answer.json()["id"])


def swept(http: httpx2.Client, ranks: list[int], **more: Any) -> dict[str, Any]:
    body = {"model": BASE, "training_file": upload(http), "selftune": {"rank": ranks}, **more}
    answer = http.post(SWEEPS, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def look(http: httpx2.Client, sweep: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"{SWEEPS}/{sweep['id']}").json()
    return found


def submitted(http: httpx2.Client, sweep: dict[str, Any], count: int) -> list[str]:
    """Wait until so many runs have jobs, and return the jobs."""

    def jobs() -> list[str]:
        return [run["job_id"] for run in look(http, sweep)["runs"] if run["status"] != "waiting"]

    wait_until(lambda: len(jobs()) >= count)
    return jobs()


def succeed(redis_url: str, job_id: str, model: str) -> None:
    async def story(client: Client) -> None:
        jobs = JobStore(client)
        await Registry(client).publish(make_adapter(model, job_id=job_id))
        for state in (JobState.QUEUED, JobState.RUNNING):
            await jobs.update(job_id, lambda record, state=state: replace(record, status=state))  # type: ignore[misc]
        await jobs.finish(job_id, JobState.SUCCEEDED, fine_tuned_model=model)

    with_store(redis_url, story)


def fail(redis_url: str, job_id: str) -> None:
    error = JobError(code="training_failed", message="The loss is no number.")
    with_store(redis_url, lambda client: JobStore(client).finish(job_id, JobState.FAILED, error=error))


def model_eval(api: ApiServer) -> dict[str, Any]:
    sdk = openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0)
    source = {"type": "completions", "source": content(rows(20)), "input_messages": QUESTION}
    return {"eval_id": make_eval(sdk).id, "data_source": source}


def test_an_eval_ranks_the_models_and_what_an_alias_needs_is_kept(
    api: ApiServer, http: httpx2.Client, redis_url: str
) -> None:
    sweep = swept(http, [1, 2, 4, 8], sweep={"keep": "best", "eval": model_eval(api)})
    assert sweep["metric"] == {"name": "eval_pass_rate", "better": "higher"}
    jobs = submitted(http, sweep, 4)
    models = [f"ft:{BASE}:acme:knows:ABCDEFG{place}-{knows}" for place, knows in enumerate((4, 19, 5))]
    for job_id, model in zip(jobs, models, strict=False):
        succeed(redis_url, job_id, model)
    alias = {"name": "support", "model": models[0], "wait_warm": False}
    assert http.post("/v1/aliases", json=alias).is_success
    fail(redis_url, jobs[3])
    done = wait_until(lambda: (found := look(http, sweep))["status"] == "completed" and found, timeout_s=30)
    assert isinstance(done, dict)
    runs = done["runs"]
    assert [(run["value"], run["rank"]) for run in runs] == [(0.2, 3), (0.95, 1), (0.25, 2), (None, None)]
    assert [run["model"] for run in runs] == [*models, None]
    assert done["best"] == {"job_id": jobs[1], "model": models[1], "value": 0.95, "lead": "better"}
    assert runs[3]["error"] == {"code": "training_failed", "message": "The loss is no number."}
    assert [run["model_kept"] for run in runs] == [True, True, False, False]
    assert [http.get(f"/v1/models/{model}").is_success for model in models] == [True, True, False]


def test_steps_that_are_taken_twice_do_what_once_does(tmp_path: Path, redis_url: str) -> None:
    """A process may die after a step's work and before its record is stored; then the step is taken again."""
    settings = Settings(data_dir=str(tmp_path), redis_url=redis_url, **NO_METRICS)
    caller = KeyRecord(project="proj_default", name="k", created_at=1)

    async def twice(services: Services, record: SweepRecord) -> SweepRecord:
        first = await services.flowing.sweep_runner.advance(record)
        assert await services.flowing.sweep_runner.advance(record) == first
        return first

    async def story() -> None:
        services = Services.open(settings, asyncio.Event())
        jobs, registry = services.stores.jobs, services.stores.registry
        try:
            await registry.put_base(make_base())
            for name in ("file-a", "file-b"):
                await services.stores.files.add(
                    FileRecord(
                        id=name,
                        project=caller.project,
                        filename="a",
                        purpose="fine-tune",
                        size_bytes=1,
                        sha256="a" * 64,
                        created_at=1,
                    )
                )
            wanted = CreateSweep(
                model=BASE, training_file="file-a", validation_file="file-b", selftune={"rank": [1, 2, 4]},
                sweep=SweepOptions(keep="best"),
            )  # fmt: skip
            record = await services.flowing.sweeps.create(wanted, caller=caller, sweep_id="sweep_a")
            record = await twice(services, replace(record, status=FlowState.IN_PROGRESS))
            made, _ = await jobs.list(caller.project, after=None, limit=10)
            assert {job.id for job in made} == {run.job_id for run in record.runs}
            for place, run in enumerate(record.runs):
                model = f"ft:{BASE}:acme::ABCDEFG{place}"
                await registry.publish(make_adapter(model, job_id=run.job_id))
                await jobs.append_checkpoint(
                    Checkpoint(
                        id=f"c{place}",
                        created_at=1,
                        fine_tuning_job_id=run.job_id,
                        step_number=1,
                        fine_tuned_model_checkpoint=model,
                        metrics=CheckpointMetrics(full_valid_loss=2.0 - place),
                    )
                )
                for state in (JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED):
                    change = partial(replace, status=state, fine_tuned_model=model)
                    await jobs.update(run.job_id, change)
            record = await twice(services, record)
            assert [run.value for run in record.runs] == [2.0, 1.0, 0.0]
            record = await twice(services, record)
            assert [run.rank for run in record.runs] == [3, 2, 1]
            assert len(await registry.listed(caller.project)) == 3  # nothing goes before the ranks are stored
            record = await twice(services, record)
            assert record.status is FlowState.COMPLETED
            assert [(run.rank, run.is_kept) for run in record.runs] == [(3, False), (2, False), (1, True)]
            assert [one.job_id for one in await registry.listed(caller.project)] == [record.runs[2].job_id]
        finally:
            await services.close()

    asyncio.run(story())


def test_sweep_of_which_nothing_is_left_has_failed(http: httpx2.Client, redis_url: str) -> None:
    sweep = swept(http, [1, 2], validation_file=upload(http))
    for job_id in submitted(http, sweep, 2):
        fail(redis_url, job_id)
    done = wait_until(lambda: (found := look(http, sweep))["status"] == "failed" and found)
    assert isinstance(done, dict)
    assert done["error"]["code"] == "no_model"
    assert [run["status"] for run in done["runs"]] == ["failed"] * 2
    assert http.get(f"{SWEEPS}/{sweep['id']}/plot").is_success
    deleted = http.delete(f"{SWEEPS}/{sweep['id']}").json()
    assert deleted == {"id": sweep["id"], "object": "fine_tuning.sweep.deleted", "deleted": True}
    assert http.get(f"{SWEEPS}/{sweep['id']}").status_code == 404
    assert http.get(f"/v1/fine_tuning/jobs/{done['runs'][0]['job_id']}").is_success


def test_sweep_that_was_stopped_shows_its_jobs_as_they_are(http: httpx2.Client, redis_url: str) -> None:
    sweep = swept(http, [1, 2], validation_file=upload(http))
    path = f"{SWEEPS}/{sweep['id']}"
    first, _ = submitted(http, sweep, 2)
    with_store(redis_url, lambda client: JobStore(client).update(first, partial(replace, device_seconds=7.5)))
    refused = http.delete(path)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_sweep_state")
    assert http.post(f"{path}/cancel").is_success
    wait_until(lambda: {run["status"] for run in look(http, sweep)["runs"]} == {"cancelled"})
    assert look(http, sweep)["cost"]["device_seconds"] == 7.5


def test_jobs_are_made_as_the_project_may_have_them(http: httpx2.Client, api: ApiServer, redis_url: str) -> None:
    project = new_project(api, concurrent_jobs=1)
    with api.client(new_key(api, project)) as own:
        sweep = swept(own, [1, 2, 4], validation_file=upload(own), metadata={"of": "mine"})
        [first] = submitted(own, sweep, 1)
        job = own.get(f"/v1/fine_tuning/jobs/{first}").json()
        assert job["metadata"] == {"of": "mine", "sweep_id": sweep["id"]}
        fail(redis_url, first)
        assert len(submitted(own, sweep, 2)) == 2
        assert own.delete(f"/v1/files/{sweep['validation_file']}").is_success
        fail(redis_url, submitted(own, sweep, 2)[1])
        done = wait_until(lambda: (found := look(own, sweep))["status"] == "failed" and found)
        assert isinstance(done, dict)
        assert [run["status"] for run in done["runs"]] == ["failed", "failed", "refused"]
        assert "No such File" in done["runs"][2]["error"]["message"]


def test_the_reward_of_the_last_evaluation_counts(redis_url: str) -> None:
    record = JobRecord(
        id=ids.new_job_id(), project="p", organization="o", created_at=1, model="b", training_file="f", seed=1,
        requested=SupervisedHyperparameters(), model_name="ft:b:o::x",
    )  # fmt: skip

    async def story(client: Client) -> None:
        jobs = JobStore(client)
        rewards = [event("", type="metrics", data={"valid_rollouts": {"reward_mean": mean}}) for mean in (0.2, 0.7)]
        await jobs.create(record, [*rewards, *(event("", type="metrics", data={"step": 1}) for _ in range(150))])
        assert await validation_value(jobs, record, "valid_reward") == 0.7
        assert await validation_value(jobs, record, "full_valid_loss") is None

    with_store(redis_url, story)


def test_asking_twice_with_one_key_makes_one_sweep(http: httpx2.Client) -> None:
    body = {
        "model": BASE, "training_file": upload(http), "validation_file": upload(http), "selftune": {"rank": [1, 2]},
    }  # fmt: skip
    made = [http.post(SWEEPS, json=body, headers={"idempotency-key": "k"}).json()["id"] for _ in range(2)]
    assert made[0] == made[1]
    nested = f'{{"rank": {"[" * 500}{"]" * 500}}}'
    deep = http.post(
        SWEEPS, content=json.dumps({**body, "selftune": 0}).replace('"selftune": 0', f'"selftune": {nested}')
    )
    assert (deep.status_code, deep.json()["error"]["param"]) == (400, "selftune")
    large = content([{"item": {"question": "x" * 70_000, "answer": ""}}])
    wanted = {"eval_id": "e", "data_source": {"type": "completions", "source": large, "input_messages": QUESTION}}
    refused = http.post(SWEEPS, content=json.dumps({**body, "sweep": {"eval": wanted}})).json()["error"]
    assert (refused["code"], refused["param"]) == ("invalid_value", "sweep.eval.data_source")
