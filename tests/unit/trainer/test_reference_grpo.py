"""Advantages, loss and gradients of one batch of a reinforcement job equal those of TRL's GRPOTrainer in float32.

TRL gets the answers from a rollout function, rewards and advantages it works out itself, and so it does the reference,
with its adapter switched off. Its KL is the plain estimate, without the ratio that its default puts before it. What it
is given besides are the log probabilities that the answers were sampled with: on one machine its own would make every
ratio 1, and clip nothing.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

# TRL would call the Hub when it is imported.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from services.trainer.data.prompts import Completion
from services.trainer.protocol import ReinforcementSpec, TrainSpec
from services.trainer.training.grpo import Grpo
from services.trainer.training.losses import group_advantages
from services.trainer.training.model import build_model
from services.trainer.training.objectives import read_targets
from services.trainer.training.reading import Reader
from services.trainer.training.reinforcement import completions_of
from shared.rollout_records import RolloutGroup, RolloutSample
from tests.unit.trainer import reference
from tests.unit.trainer.reference import Gradients, assert_equal
from tests.unit.trainer.test_reference import ours
from tests.unit.trainer.test_reference_trl import PLAIN, Gradient
from tests.unit.trainer.tiny import make_spec
from tests.unit.trainer.tiny_models import save_tiny_model

PROMPTS, GROUP = 3, 4
NOISE = 0.4
"""Spread of the ratios' logarithms, in nats: beyond both bounds."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base"), "llama")


@pytest.mark.parametrize(
    "chosen",
    [
        ReinforcementSpec(kl_coefficient=0.05),
        ReinforcementSpec(kl_coefficient=0.0, scale_advantages=False, clip_low=0.1, clip_high=0.3),
    ],
    ids=["with a pull back, scaled", "without"],
)
def test_reinforcement_step_is_that_of_trl_s_grpo_trainer(
    base: Path, tmp_path: Path, chosen: ReinforcementSpec
) -> None:
    spec = make_spec(base, tmp_path, method="reinforcement", reinforcement=chosen)
    groups = rollouts(spec)
    grpo = Grpo(Reader(build_model(spec)), chosen)
    rows = grpo.referring(completions_of(groups, chosen))
    trainer = told(spec, chosen, groups, tmp_path)
    loss, gradients = first_step(trainer)
    assert_equal(ours(grpo, rows), (loss, gradients))
    rewards_PG = torch.tensor([[sample.reward or 0.0 for sample in group.samples] for group in groups])
    expected = trainer.seen["advantages"].view(PROMPTS, GROUP)
    torch.testing.assert_close(group_advantages(rewards_PG, scale=chosen.scale_advantages), expected)
    assert expected[-1].tolist() == [0.0] * GROUP, "a group of equal rewards teaches nothing"
    measured = grpo.measure(rows, backward=False)
    assert measured.served is not None and 0.02 < measured.served.clip_share < 0.98
    shared = trainer.seen["clipped"]
    assert measured.served.clip_share == pytest.approx(shared, abs=1e-6)
    assert_reference(trainer, rows, with_pull=chosen.kl_coefficient > 0)


def rollouts(spec: TrainSpec) -> list[RolloutGroup]:
    """Answers of random tokens and lengths, sampled by a model near the trained one."""
    drawing = random.Random(0)
    words = range(50, 300)
    groups = [
        RolloutGroup(
            line=line, prompt_tokens=drawing.choices(words, k=drawing.randint(3, 9)), item={},
            samples=[
                RolloutSample(
                    tokens=drawing.choices(words, k=drawing.randint(1, 12)), logprobs=[],
                    reward=1.0 if line == PROMPTS else drawing.random(),
                )
                for _ in range(GROUP)
            ],
        )
        for line in range(1, PROMPTS + 1)
    ]  # fmt: skip
    model = build_model(spec)
    reference.move_away_from_base(model.trainable())
    return [sampled_near(group, Reader(model), seed) for seed, group in enumerate(groups)]


def sampled_near(group: RolloutGroup, reader: Reader, seed: int) -> RolloutGroup:
    """Say of each token what the trained model says, and some noise."""
    unknown = [RolloutSample(tokens=s.tokens, logprobs=[0.0] * len(s.tokens), reward=s.reward) for s in group.samples]
    rows = completions_of([replaced(group, unknown)], ReinforcementSpec())
    with torch.no_grad():
        read = read_targets(reader, [row.example for row in rows])
    noise_N = torch.randn(len(read.logprobs_N), generator=torch.Generator().manual_seed(seed)) * NOISE
    parts = torch.split(read.logprobs_N + noise_N, list(read.counts))
    samples = [
        RolloutSample(tokens=sample.tokens, logprobs=part.tolist(), reward=sample.reward)
        for sample, part in zip(group.samples, parts, strict=True)
    ]
    return replaced(group, samples)


def replaced(group: RolloutGroup, samples: list[RolloutSample]) -> RolloutGroup:
    return RolloutGroup(line=group.line, prompt_tokens=group.prompt_tokens, item={}, samples=samples)


class Told(GRPOTrainer):  # type: ignore[misc]
    """Takes the log probabilities that the answers were sampled with for those of the model before."""

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        assert "old_per_token_logps" not in output
        self.seen = output
        return output | {"old_per_token_logps": output["sampling_per_token_logps"]}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "clip_ratio/region_mean" in self._metrics["train"]:
            [self.seen["clipped"]] = self._metrics["train"]["clip_ratio/region_mean"]
        super().log(logs, start_time)


def told(spec: TrainSpec, chosen: ReinforcementSpec, groups: list[RolloutGroup], folder: Path) -> Told:
    samples = [(group, sample) for group in groups for sample in group.samples]
    plain = {name: value for name, value in PLAIN.items() if name not in ("max_length", "train_sampling_strategy")}

    def answer(prompts: list[str], _: Any) -> dict[str, Any]:
        assert prompts == [str(group.line) for group, _ in samples]
        return {
            "prompt_ids": [group.prompt_tokens for group, _ in samples],
            "completion_ids": [sample.tokens for _, sample in samples],
            "logprobs": [sample.logprobs for _, sample in samples],
        }

    def reward(completions: list[str], **_: Any) -> list[float | None]:
        return [sample.reward for _, sample in samples]

    config = GRPOConfig(
        str(folder / "trl"), loss_type="dapo", beta=chosen.kl_coefficient, epsilon=chosen.clip_low,
        epsilon_high=chosen.clip_high, scale_rewards="group" if chosen.scale_advantages else "none",
        num_generations=GROUP, shuffle_dataset=False, logging_steps=1, use_bias_correction_kl=False,
        **{**plain, "per_device_train_batch_size": len(samples)},
    )  # fmt: skip
    return Told(
        reference.plain_model(spec), reward, config, rollout_func=answer,
        train_dataset=Dataset.from_list([{"prompt": str(group.line)} for group in groups]),
        processing_class=AutoTokenizer.from_pretrained(spec.base_folder),
    )  # fmt: skip


def first_step(trainer: Told) -> tuple[float, Gradients]:
    reference.move_away_from_base(reference.trainable(trainer.model))
    gradient = Gradient()
    trainer.add_callback(gradient)
    return trainer.train().training_loss, gradient.found


def assert_reference(trainer: Told, rows: list[Completion], *, with_pull: bool) -> None:
    """Both have the same model to start from, token by token."""
    if not with_pull:
        assert "ref_per_token_logps" not in trainer.seen
        return
    expected = trainer.seen["ref_per_token_logps"][trainer.seen["completion_mask"].bool()]
    found = torch.cat([torch.from_numpy(row.reference_N) for row in rows])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
