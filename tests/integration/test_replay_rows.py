"""What a replay makes of a model's job, what it refuses, and which champions are replaced: on the stores alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace as replace_tools
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from services.api.aliases.management import Aliases
from services.api.deps import Services
from services.api.model_evals import ModelEvals
from services.api.replays.manifest import Manifests
from services.api.replays.promotion import Promotion
from shared.errors import InvalidRequest, NotFound, RateLimited, SelftuneError, TransitionRefused
from shared.flow_records import FlowError
from shared.flow_states import FlowState
from shared.records import JobRecord, KeyRecord
from shared.replay_records import ReplayRecord, ReplayRowRecord
from shared.schemas.aliases import CreateAlias, UpdateAlias
from shared.schemas.evals import CompletionsRun, EvalFileId
from shared.schemas.integrations import JobIntegration, WandbRun
from shared.schemas.methods import LabelWeights, SupervisedHyperparameters
from shared.schemas.options import TrainingOptions
from shared.schemas.replays import PromoteReplay
from shared.schemas.sweeps import ModelEval
from shared.settings import Settings
from shared.states import JobState
from tests.api_server import BASE, NO_METRICS, make_adapter, make_base

NEW = "org/new-base"
PROJECT = "proj_default"
CALLER = KeyRecord(project=PROJECT, name="k", created_at=1)
EVAL = ModelEval(eval_id="eval_a", data_source=CompletionsRun(source=EvalFileId(id="file-a")))


def name(letter: str, base: str = BASE) -> str:
    return f"ft:{base}:acme::{letter * 8}"


def make_job(letter: str, **fields: Any) -> JobRecord:
    chosen = SupervisedHyperparameters(n_epochs=3, batch_size=4, learning_rate_multiplier=0.5)
    return JobRecord(
        id=f"ftjob-{letter}", project=PROJECT, organization="acme", created_at=1, model=BASE, training_file="file-a",
        validation_file="file-b", suffix="old", seed=7, requested=SupervisedHyperparameters(), resolved=chosen,
        status=JobState.SUCCEEDED, model_name=name(letter), fine_tuned_model=name(letter), **fields,
    )  # fmt: skip


def make_replay(*rows: ReplayRowRecord, **fields: Any) -> ReplayRecord:
    record = ReplayRecord(id="replay_a", project=PROJECT, created_at=1, base=NEW, eval=EVAL, rows=rows)
    return ReplayRecord(**{**{one: getattr(record, one) for one in record.__struct_fields__}, **fields})


def make_row(letter: str, **fields: Any) -> ReplayRowRecord:
    return ReplayRowRecord(model=name(letter), job_id="j", champion_run_id="c", challenger_run_id="d", **fields)


def on_services(folder: Path, redis_url: str, story: Callable[[Services], Awaitable[None]]) -> None:
    async def run() -> None:
        settings = Settings(data_dir=str(folder), redis_url=redis_url, **NO_METRICS)
        services = Services.open(settings, asyncio.Event())
        try:
            registry = services.stores.registry
            await registry.put_base(make_base())
            await registry.put_base(make_base(NEW, context_length=512))
            await story(services)
        finally:
            await services.close()

    asyncio.run(run())


def test_a_model_is_made_again_as_it_was_made(tmp_path: Path, redis_url: str) -> None:
    job = make_job(
        "a",
        method="kto",
        resolved_beta=0.2,
        resolved_weights=LabelWeights(desirable=1.0, undesirable=2.0),
        options=TrainingOptions(rank=8, max_length=1024, priority="high", lr_schedule="cosine"),
        integrations=[JobIntegration(wandb=WandbRun(project="p", run_id="r", tags=["t"]))],
        metadata={"team": "x", "sweep_id": "sweep_a", "distillation_id": "distill_a"},
        device_seconds=5.0,
        started=True,
    )

    async def story(services: Services) -> None:
        stores = services.stores
        await stores.jobs.create(job, [])
        await stores.registry.publish(make_adapter(name("a"), job_id=job.id))
        manifest = await Manifests(services.core.settings, stores.registry, stores.jobs).of(name("a"), make_replay())
        request = manifest.request
        assert (manifest.job_id, request.model, request.seed, request.suffix) == (job.id, NEW, 7, "old")
        assert (request.training_file, request.validation_file) == ("file-a", "file-b")
        assert request.method is None and request.own_method is not None and request.own_method.kto is not None
        hyperparameters = request.own_method.kto.hyperparameters
        assert (hyperparameters.n_epochs, hyperparameters.beta, hyperparameters.undesirable_weight) == (3, 0.2, 2.0)
        assert request.options == TrainingOptions(rank=8, lr_schedule="cosine")
        assert manifest.remarks == ("max_length is 512 in place of 1024, which the base does not have.",)
        assert request.integrations is not None and request.integrations[0].wandb.tags == ["t"]
        assert request.metadata == {"team": "x"}

    on_services(tmp_path, redis_url, story)


def test_a_model_that_cannot_be_made_again_says_why(tmp_path: Path, redis_url: str) -> None:
    async def story(services: Services) -> None:
        stores = services.stores
        manifests = Manifests(services.core.settings, stores.registry, stores.jobs)
        for job in (make_job("p", parent=name("x")), make_job("r"), make_job("n")):
            await stores.jobs.create(job, [])
        for letter, fields in (
            ("p", {"job_id": "ftjob-p"}),
            ("r", {"job_id": "ftjob-r", "kind": "reward"}),
            ("i", {"job_id": ""}),
            ("j", {"job_id": "ftjob-gone"}),
            ("f", {"job_id": "ftjob-p", "project": "proj_other"}),
        ):
            await stores.registry.publish(make_adapter(name(letter), **fields))
        await stores.registry.publish(make_adapter(name("n", NEW), base=NEW, job_id="ftjob-n"))

        async def refusal(model: str, replay: ReplayRecord) -> str | None:
            with pytest.raises(SelftuneError) as caught:
                await manifests.of(model, replay)
            assert isinstance(caught.value, InvalidRequest | NotFound)
            return caught.value.code

        models = [name("p"), name("r"), name("i"), name("j"), name("f"), name("z"), name("n", NEW)]
        assert [await refusal(model, make_replay()) for model in models] == [
            "has_parent", "reward_model", "no_job", "no_job", "model_not_found", "model_not_found", "same_base",
        ]  # fmt: skip
        assert await refusal(name("p"), make_replay(base="org/none")) == "base_gone"

    on_services(tmp_path, redis_url, story)


def test_only_better_challengers_and_those_that_are_named_take_over(tmp_path: Path, redis_url: str) -> None:
    verdicts = {"a": "better", "b": "no_difference_shown", "c": "worse"}
    rows = [make_row(letter, verdict=said, challenger=name(letter, NEW)) for letter, said in verdicts.items()]
    replay = make_replay(
        *rows, make_row("d", error=FlowError(code="no_job", message="gone")), status=FlowState.COMPLETED
    )

    async def story(services: Services) -> None:
        for letter in "abcd":
            await services.stores.registry.publish(make_adapter(name(letter)))
            await services.stores.registry.publish(make_adapter(name(letter, NEW), base=NEW))
            alias = CreateAlias(name=f"alias-{letter}", model=name(letter), wait_warm=False)
            await services.named.aliases.create(alias, caller=CALLER)

        async def moved(record: ReplayRecord, models: list[str] | None = None) -> dict[str, str]:
            wanted = PromoteReplay(models=models, wait_warm=False)
            promotion = await services.flowing.promotion.promote(record, wanted, caller=CALLER)
            return {one.alias: one.model for one in promotion.data}

        with pytest.raises(TransitionRefused):
            await moved(make_replay(*rows))
        for letter, code in (("c", "challenger_worse"), ("d", "no_challenger"), ("z", "unknown_model")):
            with pytest.raises(InvalidRequest) as caught:
                await moved(replay, [name("a"), name(letter)])
            assert (caught.value.code, caught.value.param) == (code, "models")
        assert await moved(replay) == {"alias-a": name("a", NEW)}
        assert await moved(replay) == {}
        assert await moved(replay, [name("a"), name("b")]) == {"alias-b": name("b", NEW)}
        await services.stores.registry.retire(name("a", NEW))
        targets = {one.name: one.target for one in await services.stores.alias_store.all(PROJECT)}
        assert targets == {
            "alias-a": name("a", NEW), "alias-b": name("b", NEW), "alias-c": name("c"), "alias-d": name("d"),
        }  # fmt: skip

    on_services(tmp_path, redis_url, story)


def test_aliases_wait_for_their_models_beside_each_other(tmp_path: Path, redis_url: str) -> None:
    replay = make_replay(
        *(make_row(letter, verdict="better", challenger=name(letter, NEW)) for letter in "ab"),
        status=FlowState.COMPLETED,
    )

    class Meeting:
        """Moves an alias once both are to be moved."""

        def __init__(self) -> None:
            self.both = asyncio.Barrier(2)

        async def update(self, alias: str, change: UpdateAlias, *, caller: KeyRecord) -> Any:
            async with asyncio.timeout(10):
                await self.both.wait()
            raise NotFound(f"{alias} is gone")

    async def story(services: Services) -> None:
        for letter in "ab":
            await services.stores.registry.publish(make_adapter(name(letter)))
            alias = CreateAlias(name=f"alias-{letter}", model=name(letter), wait_warm=False)
            await services.named.aliases.create(alias, caller=CALLER)
        promotion = Promotion(services.stores.alias_store, cast(Aliases, Meeting()))
        done = await promotion.promote(replay, PromoteReplay(), caller=CALLER)
        assert sorted(one.alias for one in done.data if one.error is not None) == ["alias-a", "alias-b"]

    on_services(tmp_path, redis_url, story)


class Evals:
    """Stands in for the runs of the eval: what was cancelled is noted, and storage has no room for more."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []

    async def cancel(self, wanted: ModelEval, run_id: str, *, project: str) -> None:
        self.cancelled.append(run_id)

    async def score(self, wanted: ModelEval, run_id: str, *, project: str) -> None:
        raise NotFound("No such run.")

    async def start(self, wanted: ModelEval, model: str, **more: Any) -> None:
        raise RateLimited("The project's storage has no room.", code="storage_limit_exceeded")


def test_row_with_an_error_ends_with_its_runs_also_where_the_replay_is_completed(
    tmp_path: Path, redis_url: str
) -> None:
    async def story(services: Services) -> None:
        runner, evals = services.flowing.replay_runner, Evals()
        runner._tools = replace_tools(runner._tools, evals=cast(ModelEvals, evals))
        compared = make_row("a", verdict="better", challenger=name("a", NEW))
        waiting = make_row("b", status="evaluating", has_job=True, challenger=name("b", NEW))
        record = await runner.advance(make_replay(compared, replace(waiting, champion_run_id="left")))
        assert record.status is FlowState.COMPLETED
        error = record.rows[1].error
        assert error is not None and error.code == "storage_limit_exceeded"
        await runner.clean_up(record)
        assert evals.cancelled == ["left", "d"]

    on_services(tmp_path, redis_url, story)


def test_replay_that_was_stopped_shows_its_jobs_as_they_are_and_can_be_forgotten(
    tmp_path: Path, redis_url: str
) -> None:
    async def story(services: Services) -> None:
        replays, store = services.flowing.replays, services.stores.replay_store
        await services.stores.jobs.create(replace(make_job("a"), status=JobState.CANCELLED, fine_tuned_model=None), [])
        row = replace(make_row("a", status="running", has_job=True), job_id="ftjob-a")
        await store.create(make_replay(row))
        with pytest.raises(TransitionRefused, match="cancel it before"):
            await replays.delete("replay_a", project=PROJECT)
        shown = await replays.shown(await replays.cancel("replay_a", project=PROJECT))
        assert (shown.status, shown.rows[0].status) == ("canceled", "cancelled")
        with pytest.raises(NotFound):
            await replays.delete("replay_a", project="other")
        await replays.delete("replay_a", project=PROJECT)
        assert not await store.active()
        with pytest.raises(NotFound):
            await store.get("replay_a")
        assert (await services.stores.jobs.get("ftjob-a")).status is JobState.CANCELLED

    on_services(tmp_path, redis_url, story)
