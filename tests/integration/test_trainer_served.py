"""Adapters of every form against the real server: what it answers is what the training process computes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from shared.rollout_records import ROLLOUTS_FOLDER, read_rollouts
from shared.schemas.graders import RewardModelGrader, StringCheckGrader
from shared.schemas.methods import ReinforcementHyperparameters, ReinforcementMethod
from shared.schemas.options import EarlyStopping, ReinforcementOptions, TrainingOptions
from tests.integration.inference_stack import BASE_ID, InferenceStack, inference_stack, make_base
from tests.integration.test_trainer_options import finished, job
from tests.integration.trainer_stack import SHORT, Client, running_trainer, with_client
from tests.unit.trainer.tiny import preference_rows, training_rows

AGREES = "The served model answers like the trained one"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceStack]:
    """A trainer, which registers the base, and a replica of it."""
    base = make_base(tmp_path_factory.mktemp("base"))
    with (
        inference_stack(base, threads=1, lora_rank=4, max_model_len=256, lease_ttl_s=5.0) as running,
        running_trainer(running.settings, tmp_path_factory.mktemp("log")),
    ):
        running.start()
        running.wait_ready()
        yield running


def test_forms_of_adapters_are_served_as_they_were_trained(stack: InferenceStack) -> None:
    async def story(client: Client) -> None:
        training, held_out = await client.upload(training_rows(12)), await client.upload(training_rows(5))
        few = TrainingOptions(
            rank=3, alpha=5.5, target_modules=["q_proj", "v_proj", "down_proj"], use_rslora=True, dropout=0.1
        )
        first = await finished(client, job(training, validation_file=held_out, options=few))
        assert await agreed(client, first.id)

        stopped = TrainingOptions(quantization="nf4", packing=True, early_stopping=EarlyStopping(min_delta=9.0))
        asked = replace(SHORT, n_epochs=5)
        second = await finished(
            client,
            job(training, validation_file=held_out, parent=first.model_name, options=stopped, requested=asked),
        )
        assert await agreed(client, second.id)
        assert max(await client.steps(second.id)) == 4  # two epochs of two steps: the second did not fall by 9 nats

        pairs = await client.upload(preference_rows(12))
        third = job(
            pairs, method="dpo", requested=replace(SHORT, learning_rate_multiplier=40.0), parent=first.model_name,
        )  # fmt: skip
        assert await agreed(client, (await finished(client, third)).id)

    with_client(stack.settings, story)


def test_reinforcement_learns_from_what_its_own_model_answers(stack: InferenceStack) -> None:
    """Each step's answers are the step's model's, or the job would fail; of its models none is left but the last."""
    prompts = [{"messages": [{"role": "user", "content": f"the quick fox {n}"}], "mark": "a"} for n in range(10)]
    grader = StringCheckGrader(
        name="mark", input="{{ sample.output_text }}", reference="{{ item.mark }}", operation="ilike"
    )
    chosen = ReinforcementHyperparameters(
        n_epochs=1, batch_size=5, learning_rate_multiplier=4.0, compute_multiplier=0.5, eval_interval=1, eval_samples=2
    )

    async def story(client: Client) -> None:
        asked = job(
            await client.upload(prompts),
            validation_file=await client.upload(prompts),
            method="reinforcement",
            requested=replace(SHORT, n_epochs=1, batch_size=5),
            reinforcement=ReinforcementMethod(grader=grader, hyperparameters=chosen),
            options=TrainingOptions(reinforcement=ReinforcementOptions(max_completion_tokens=8)),
        )
        record = await finished(client, asked)
        assert await agreed(client, record.id) and await client.steps(record.id) == [1, 2]
        folder = client.stores.paths.job_folder(record.id) / ROLLOUTS_FOLDER
        files = {path.name: read_rollouts(path) for path in folder.iterdir()}
        assert sorted(files) == [
            *("train-000001.jsonl", "train-000002.jsonl"),
            *("valid-000000.jsonl", "valid-000001.jsonl", "valid-000002.jsonl"),
        ]
        policies = {name.removesuffix(".jsonl"): header.policy for name, (header, _) in files.items()}
        assert policies["valid-000000"] == policies["train-000001"] != policies["train-000002"]
        assert policies["valid-000001"] == policies["train-000002"] != policies["valid-000002"]
        for header, groups in files.values():
            samples = [sample for group in groups for sample in group.samples]
            assert [sample.reward for sample in samples] == [float("a" in one.text.casefold()) for one in samples]
            assert (header.stats.samples, header.stats.ungraded) == (len(samples), 0)
        assert await client.stores.registry.policies(record.id) == []
        final = await client.stores.registry.get(record.model_name)
        assert final is not None and final.sha256 == policies["valid-000002"]
        assert not client.stores.paths.adapter_folder(BASE_ID, policies["train-000001"]).exists()

    with_client(stack.settings, story)


def test_rewards_come_from_a_reward_model(stack: InferenceStack) -> None:
    """RLHF: preferences make a reward model, and that rewards what the model answers."""
    prompts = [{"messages": row["input"]["messages"]} for row in preference_rows(12)]

    async def story(client: Client) -> None:
        preferred = await client.upload(preference_rows(24))
        judge = await finished(client, job(preferred, method="reward", requested=replace(SHORT, n_epochs=4)))
        grader = RewardModelGrader(name="liked", model=judge.model_name, squash=True)
        asked = job(
            await client.upload(prompts),
            method="reinforcement",
            requested=replace(SHORT, n_epochs=1, batch_size=6),
            reinforcement=ReinforcementMethod(
                grader=grader, hyperparameters=ReinforcementHyperparameters(n_epochs=1, batch_size=6)
            ),
            options=TrainingOptions(reinforcement=ReinforcementOptions(max_completion_tokens=6, group_size=4)),
        )
        record = await finished(client, asked)
        assert record.error is None and await client.steps(record.id) == [1, 2]
        folder = client.stores.paths.job_folder(record.id) / ROLLOUTS_FOLDER
        groups = [group for path in folder.iterdir() for group in read_rollouts(path)[1]]
        rewards = [sample.reward for group in groups for sample in group.samples]
        assert len(groups) == 12 and len(set(rewards)) > 24
        assert all(reward is not None and 0 < reward < 1 for reward in rewards)

    with_client(stack.settings, story)


async def agreed(client: Client, job_id: str) -> bool:
    return any(message.startswith(AGREES) for message in await client.story(job_id))
