"""The trainer process with jobs beyond the plain ones: parents, early stopping, other methods, a quantised base."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from msgspec.structs import replace

from services.trainer.training.scoring import Scorer
from shared import ids, keys
from shared.adapters import CONFIG_NAME
from shared.chat_data import Message
from shared.grading.means import JudgeFailed, Unscorable
from shared.model_records import Access
from shared.records import DEFAULT_PROJECT, AdapterRecord, JobRecord
from shared.reward_scoring import RewardScoring
from shared.schemas.methods import LabelWeights
from shared.schemas.options import EarlyStopping, TrainingOptions
from shared.settings import Settings
from shared.states import JobState
from shared.store.jobs import event
from tests.api_server import ApiServer, wait_until
from tests.integration.trainer_stack import BASE_ID, DEADLINE_S, SHORT, Client, TrainerProcess, with_client
from tests.unit.trainer.tiny import labelled_rows, preference_rows, training_rows


def job(training_file: str, **changes: Any) -> JobRecord:
    values: dict[str, Any] = {
        "id": ids.new_job_id(), "project": DEFAULT_PROJECT, "organization": "selftune", "created_at": int(time.time()),
        "model": BASE_ID, "training_file": training_file, "suffix": "t", "seed": 3, "requested": SHORT,
        "model_name": ids.model_name(BASE_ID, "selftune", "t"),
    }  # fmt: skip
    return JobRecord(**{**values, **changes})


async def submitted(client: Client, record: JobRecord) -> str:
    await client.stores.jobs.create(record, [event(f"Created fine-tuning job: {record.id}")])
    await client.stores.enqueue(record)
    return record.id


async def finished(client: Client, record: JobRecord) -> JobRecord:
    ended = await client.ended(await submitted(client, record))
    assert (ended.status, ended.error) == (JobState.SUCCEEDED, None), await client.story(record.id)
    return ended


async def adapter_of(client: Client, record: JobRecord) -> AdapterRecord:
    adapter = await client.stores.registry.get(record.model_name)
    assert adapter is not None
    return adapter


def test_job_goes_on_from_a_fine_tuned_model_with_its_shape(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        file_id = await client.upload(training_rows(12))
        shape = TrainingOptions(rank=2, alpha=3.0, target_modules=["q_proj", "v_proj"], use_rslora=True)
        first = await finished(client, job(file_id, options=shape))
        assert first.options == replace(shape, **filled(first.options))
        second = await finished(client, job(file_id, parent=first.model_name, options=TrainingOptions(dropout=0.1)))
        assert (second.options.rank, second.options.alpha, second.options.use_rslora) == (2, 3.0, True)
        assert second.options.target_modules == ["q_proj", "v_proj"] and second.options.dropout == 0.1

        parent, child = await adapter_of(client, first), await adapter_of(client, second)
        assert (child.rank, child.base) == (2, BASE_ID) and child.sha256 != parent.sha256
        folder = lasting_settings.home / child.folder
        config = msgspec.json.decode((folder / CONFIG_NAME).read_bytes())
        assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (2, 3, True)
        manifest = msgspec.json.decode((folder / "manifest.json").read_bytes())
        assert manifest["parent_sha256"] == parent.sha256

    with_client(lasting_settings, story)


def filled(options: TrainingOptions) -> dict[str, Any]:
    """What a job shows of options that were left out."""
    names = ("finetuning_type", "dropout", "quantization", "packing", "max_length", "overlong", "lr_schedule",
             "warmup_ratio", "weight_decay", "max_grad_norm", "gradient_accumulation_steps", "dtype",
             "priority")  # fmt: skip
    found = {name: getattr(options, name) for name in names}
    assert None not in found.values()
    return found


def test_parent_that_was_deleted_before_training_fails_the_job(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        file_id = await client.upload(training_rows(12))
        gone = f"ft:{BASE_ID}:selftune:t:gone"
        for status in (JobState.VALIDATING_FILES, JobState.QUEUED):
            record = await client.ended(await submitted(client, job(file_id, parent=gone, status=status)))
            assert record.status is JobState.FAILED and record.error is not None
            assert (record.error.code, record.error.param) == ("model_not_found", "model")
            assert gone in record.error.message

    with_client(lasting_settings, story)


def test_best_epoch_is_published_once_under_the_model_s_name(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        swapped = {"fruit": "animal", "animal": "fruit"}
        held_out = [
            {"messages": [row["messages"][0], {"role": "assistant", "content": swapped[row["messages"][1]["content"]]}]}
            for row in training_rows(6)
        ]
        training, validation = await client.upload(training_rows(24)), await client.upload(held_out)
        options = TrainingOptions(early_stopping=EarlyStopping(patience=2), lr_schedule="constant")
        asked = replace(SHORT, n_epochs=20, batch_size=4, learning_rate_multiplier=20.0)
        record = await finished(client, job(training, validation_file=validation, options=options, requested=asked))
        told = await client.story(record.id)
        [remark] = [message for message in told if message.startswith("Training stopped early")]
        best = int(remark.split("(step ")[1].split(")")[0])
        last = (await client.steps(record.id))[-1]
        assert best == last - 12 and last < 120

        checkpoints = await client.stores.jobs.checkpoints(record.id)
        assert [checkpoint.step_number for checkpoint in checkpoints] == [best, last, last - 6]
        assert checkpoints[0].fine_tuned_model_checkpoint == record.fine_tuned_model == record.model_name
        assert await client.models_of(record.id) == {point.fine_tuned_model_checkpoint for point in checkpoints}

    with_client(lasting_settings, story)


def test_preferences_are_learnt_on_a_quantised_base(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        training, validation = await client.upload(preference_rows(12)), await client.upload(preference_rows(4))
        options = TrainingOptions(quantization="nf4", packing=True)
        record = job(training, validation_file=validation, method="dpo", options=options, requested_beta=0.2)
        ended = await finished(client, record)
        assert ended.resolved_beta == 0.2 and ended.options.quantization == "nf4"
        page, _ = await client.stores.jobs.events(ended.id, limit=100)
        steps = [told.data for told in reversed(page) if told.type == "metrics"]
        assert abs(steps[0]["train_loss"] - 0.6931) < 1e-4
        assert {"rewards_margin", "rewards_accuracy", "full_valid_rewards_margin"} <= steps[-1].keys()
        assert (Path(lasting_settings.home) / "jobs" / ended.id / "reference.json").exists()
        [changed] = [told for told in page if "requantized" in told.data]
        assert changed.message.startswith(
            "Trained on the base in 4 bits, served on the base as it is: the loss of 4 held-"
        )
        points = Path(lasting_settings.home) / "jobs" / ended.id / "checkpoints"

        async def dropped() -> bool:
            return not points.exists()

        await client.until(dropped, "the end of resume points that nobody goes on from")

    with_client(lasting_settings, story)


def test_own_methods_train_one_after_the_other(lasting_trainer: TrainerProcess, lasting_settings: Settings) -> None:
    async def story(client: Client) -> None:
        rows, pairs = await client.upload(labelled_rows(12)), await client.upload(preference_rows(12))
        held_out = await client.upload(labelled_rows(4))
        asked = [
            job(rows, validation_file=held_out, method="kto"), job(pairs, method="orpo", requested_beta=0.3),
            job(pairs, method="reward"),
        ]  # fmt: skip
        kto, orpo, reward = [await finished(client, record) for record in asked]
        assert kto.resolved_weights == LabelWeights(desirable=1.0, undesirable=2.0)  # 8 good rows, 4 bad ones
        assert (kto.resolved_beta, orpo.resolved_beta, reward.resolved_beta) == (0.1, 0.3, None)
        folder = Path(lasting_settings.home) / "jobs" / kto.id
        spec = msgspec.json.decode((folder / "spec.json").read_bytes())
        assert (spec["desirable_weight"], spec["undesirable_weight"]) == (1.0, 2.0)
        assert (folder / "reference.json").exists()
        assert {"kl", "rewards_accuracy", "full_valid_kl"} <= (await last_step(client, kto)).keys()
        assert {"rewards_margin", "rewards_accuracy"} <= (await last_step(client, orpo)).keys()
        scored = await last_step(client, reward)
        assert scored["train_mean_token_accuracy"] == scored["rewards_accuracy"]
        judge = await adapter_of(client, reward)
        assert (judge.kind, judge.listed, (await adapter_of(client, kto)).kind) == ("reward", True, "text")
        assert any("is a reward model" in told for told in await client.story(reward.id))
        config = msgspec.json.decode((Path(lasting_settings.home) / judge.folder / CONFIG_NAME).read_bytes())
        assert config["task_type"] == "SEQ_CLS"

        alike = await client.upload([{**row, "label": True} for row in labelled_rows(12)])
        refused = await client.ended(await submitted(client, job(alike, method="kto")))
        assert refused.error is not None and "both labels are needed" in refused.error.message

    with_client(lasting_settings, story)


async def last_step(client: Client, record: JobRecord) -> dict[str, Any]:
    page, _ = await client.stores.jobs.events(record.id, limit=100)
    return next(told.data for told in page if told.type == "metrics")


def test_diverged_job_fails_with_its_reason_and_keeps_its_last_resume_point(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        asked = replace(SHORT, learning_rate_multiplier=1e30)
        options = TrainingOptions(checkpoint_interval=1)
        file_id = await client.upload(training_rows(24))
        record = await client.ended(await submitted(client, job(file_id, requested=asked, options=options)))
        assert record.status is JobState.FAILED and record.error is not None
        assert record.error.code == "non_finite_loss" and "learning_rate_multiplier" in record.error.message
        points = sorted((client.stores.paths.job_folder(record.id) / "checkpoints").iterdir())
        steps = await client.steps(record.id)
        assert points[-1].name == f"step-{steps[-1]:08d}"
        assert await client.models_of(record.id) == set()

    with_client(lasting_settings, story)


# --- a reward model at work


def judged(count: int) -> list[list[Message]]:
    asked = [[Message(**message) for message in row["messages"]] for row in training_rows(count)]
    return [[*messages[:-1], Message(role="assistant", content="fruit")] for messages in asked]


def scoring_process(trainer: TrainerProcess) -> psutil.Process | None:
    found = [child for child in trainer.children() if "scoring_child" in " ".join(child.cmdline())]
    return found[0] if found else None


def test_reward_model_grades_from_a_process_that_may_die(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    async def story(client: Client) -> None:
        record = await finished(client, job(await client.upload(preference_rows(12)), method="reward"))
        adapter = await adapter_of(client, record)
        base = await client.stores.registry.base(BASE_ID)
        assert base is not None
        scorer = Scorer.load(Path(base.path), lasting_settings.home / adapter.folder, max_length=128)
        expected = scorer.scores(judged(8))
        asking = RewardScoring(client.stores.client, timeout_s=DEADLINE_S)
        models = asking.of(Access(project=DEFAULT_PROJECT, key_id="k"))

        async def scores(conversations: list[list[Message]]) -> list[float]:
            return await asyncio.gather(*(models.score(adapter.name, one) for one in conversations))

        assert await scores(judged(8)) == pytest.approx(expected, abs=1e-5)
        long = [Message(role="user", content="what " * 200), judged(1)[0][-1]]
        told = await asyncio.gather(
            models.score(adapter.name, long), models.score(adapter.name, judged(1)[0]), return_exceptions=True
        )
        assert isinstance(told[0], Unscorable) and "more than the 128 of this server" in str(told[0])
        assert told[1] == pytest.approx(expected[0], abs=1e-5)

        process = scoring_process(lasting_trainer)
        assert process is not None
        process.suspend()
        waiting = asyncio.create_task(scores(judged(2)))
        await client.until(lambda: _takes(client), "that the requests are taken")
        process.kill()
        assert await waiting == pytest.approx(expected[:2], abs=1e-5)

        eval_it(lasting_settings, adapter.name, expected)
        shutil.rmtree(lasting_settings.home / adapter.folder)
        successor = scoring_process(lasting_trainer)
        assert successor is not None and successor.pid != process.pid
        successor.kill()
        with pytest.raises(JudgeFailed, match="is not there any more"):
            await models.score(adapter.name, judged(1)[0])
        await asking.close()

    with_client(lasting_settings, story)


async def _takes(client: Client) -> bool:
    """Tell whether the requests that wait have been taken."""
    waiting = await client.stores.client.call("ZRANGE", keys.SCORINGS, 0, -1)
    taken = [await client.stores.client.call("HEXISTS", keys.scoring(one.decode()), "takes") for one in waiting]
    return bool(taken) and all(taken)


def eval_it(settings: Settings, model: str, expected: list[float]) -> None:
    """Have a real API grade rows, as they are, with the reward model."""
    grader = {"type": "selftune_reward", "name": "taste", "model": model, "pass_threshold": max(expected)}
    content = [
        {"item": {"messages": row["messages"][:-1]}, "sample": {"output_text": "fruit"}} for row in training_rows(8)
    ]
    config = {"type": "custom", "item_schema": {"type": "object", "properties": {"messages": {"type": "array"}}}}
    server = ApiServer(settings.home, settings.redis_url)
    try:
        with server.client() as http:
            made = http.post("/v1/evals", json={"data_source_config": config, "testing_criteria": [grader]}).json()
            source = {"type": "jsonl", "source": {"type": "file_content", "content": content}}
            run = http.post(f"/v1/evals/{made['id']}/runs", json={"data_source": source}).json()
            at = f"/v1/evals/{made['id']}/runs/{run['id']}"
            done = wait_until(lambda: (found := http.get(at).json())["status"] == "completed" and found, timeout_s=60)
            items = http.get(f"{at}/output_items").json()["data"]
    finally:
        server.stop()
    assert [one["results"][0]["score"] for one in items] == pytest.approx(expected, abs=1e-5)
    assert done["result_counts"]["errored"] == 0 and done["result_counts"]["passed"] >= 1
