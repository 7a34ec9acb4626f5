"""Reinforcement in the training process: advantages, the loss, the loop, and what it refuses."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from services.trainer.failures import StopRequested, TrainingFailed
from services.trainer.protocol import (
    SPEC_FILE,
    Exported,
    Message,
    Metrics,
    Rehearsed,
    ReinforcementSpec,
    Rollouts,
    Stepped,
    TrainSpec,
    WantRollouts,
    encoder,
)
from services.trainer.training.history import History
from services.trainer.training.losses import group_advantages, grpo_losses, kl_estimates
from services.trainer.training.objectives import Served
from services.trainer.training.reading import Reader
from services.trainer.training.reinforcement import check_served, completions_of
from services.trainer.training.run_job import load_prompts, train
from shared.rollout_records import RolloutGroup, RolloutSample, read_rollouts, write_rollouts
from tests.unit.trainer.sampling import Reward, Sampler, validation_rewards
from tests.unit.trainer.tiny import make_spec, save_tiny_base, training_rows, write_rows

CHOSEN = ReinforcementSpec(group_size=8, max_completion_tokens=6, kl_coefficient=0.001, eval_interval=8, eval_samples=8)
VOWELS = frozenset("aeiou")


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose logits can become large: with those of the usual one hardly any token can be made likely."""
    folder = save_tiny_base(tmp_path_factory.mktemp("base") / "tiny")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"] *= 5.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def prompt_rows(count: int) -> list[dict[str, Any]]:
    return [{"messages": row["messages"][:1], "kind": row["messages"][1]["content"]} for row in training_rows(count)]


def grpo_spec(base: Path, folder: Path, **changes: Any) -> TrainSpec:
    """Describe a job of 24 steps on 12 prompts, whose answers have six tokens at most."""
    paths = {
        name: str(write_rows(folder / f"{name}.jsonl", prompt_rows(count)))
        for name, count in (("training_path", 12), ("validation_path", 4))
    }
    values: dict[str, Any] = {
        **paths, "method": "reinforcement", "reinforcement": CHOSEN, "n_epochs": 8, "batch_size": 4,
        "learning_rate_multiplier": 100.0, "lr_schedule": "constant",
    }  # fmt: skip
    return make_spec(base, folder, **{**values, **changes})


def run(spec: TrainSpec, folder: Path, reward: Reward, **options: Any) -> tuple[list[Message], Sampler]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SPEC_FILE).write_bytes(encoder.encode(spec))
    said: list[Message] = []
    sampler = Sampler(spec, folder, reward, **options)
    train(folder, said.append, lambda: False, ask=sampler)
    return said, sampler


def steps_of(said: list[Message]) -> list[Metrics]:
    """What every run of the job says alike: time and memory are the machine's."""
    found = [message.metrics for message in said if isinstance(message, Stepped)]
    return [replace(one, tokens_per_s=0.0, peak_memory_bytes=None, seconds_left=None, step_s=None) for one in found]


def share_of_vowels(_: dict[str, Any], text: str) -> float:
    return sum(letter in VOWELS for letter in text) / max(1, len(text))


def test_advantages_compare_the_answers_of_a_prompt() -> None:
    missing = float("nan")
    rewards = torch.tensor([[0.0, 1.0, 2.0, 3.0], [5.0, 5.0, 5.0, 5.0], [1.0, missing, 3.0, missing]])
    found = group_advantages(rewards)
    deviation = rewards[0].std()
    assert torch.allclose(found[0], (rewards[0] - 1.5) / (deviation + 1e-4))
    assert found[1].tolist() == [0.0] * 4
    assert found[2, 1] == found[2, 3] == 0.0 and found[2, 0] == -found[2, 2] < 0
    plain = group_advantages(rewards, scale=False)
    assert plain[0].tolist() == [-1.5, -0.5, 0.5, 1.5] and plain[2, 2] == 1.0
    assert group_advantages(torch.tensor([[missing, 2.0]])).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 1.0, -1.28, 0.0),  # likelier already than the upper bound lets count
        (1.5, -1.0, 1.5, 1.5),  # a bad one that has become likelier is held back by nothing
        (0.5, -1.0, 0.8, 0.0),
        (0.5, 1.0, -0.5, -0.5),
    ],
)
def test_loss_is_clipped_on_the_side_that_is_won_already(
    ratio: float, advantage: float, loss: float, slope: float
) -> None:
    logprobs = torch.tensor([ratio], dtype=torch.float64).log().requires_grad_(True)
    losses, clipped = grpo_losses(logprobs, torch.zeros(1), torch.tensor([advantage]), clip_low=0.2, clip_high=0.28)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert logprobs.grad is not None
    assert (float(losses.detach()), float(logprobs.grad)) == pytest.approx((loss, slope))
    assert bool(clipped) == (slope == 0.0)


def test_divergence_is_zero_where_nothing_moved_and_never_below() -> None:
    logprobs = torch.linspace(-9.0, -0.1, 50)
    assert kl_estimates(logprobs, logprobs).tolist() == [0.0] * 50
    found = kl_estimates(logprobs, logprobs.flip(0))
    expected = (logprobs.flip(0) - logprobs).exp() - (logprobs.flip(0) - logprobs) - 1
    assert bool((found >= 0).all()) and torch.allclose(found, expected, atol=1e-4)


def test_what_is_learnt_from() -> None:
    def sample(reward: float | None, **more: Any) -> RolloutSample:
        return RolloutSample(tokens=[5, 6], logprobs=[-1.0, -2.0], reward=reward, **more)

    samples = [sample(1.0), sample(None), sample(0.0, finish_reason="length"), sample(0.0)]
    groups = [RolloutGroup(line=3, prompt_tokens=[1, 2, 3], item={}, samples=samples)]
    found = completions_of(groups, CHOSEN)
    assert [row.advantage > 0 for row in found] == [True, False, False]
    assert found[0].example.tokens.tolist() == [1, 2, 3, 5, 6] and found[0].prompt == [1, 2, 3]
    assert found[0].behaviour_N.tolist() == [-1.0, -2.0]
    masked = completions_of(groups, replace(CHOSEN, mask_truncated=True))
    assert [row.advantage for row in masked] == [found[0].advantage, found[2].advantage]


def test_reward_rises_and_does_not_when_rewards_are_shuffled(tiny_base: Path, tmp_path: Path) -> None:
    spec = grpo_spec(tiny_base, tmp_path)
    said, sampler = run(spec, tmp_path / "job", share_of_vowels)
    told = [message for message in said if isinstance(message, Rehearsed)]
    first, *_, last = validation_rewards(tmp_path / "job")
    assert told[0].valid_rollouts is not None and told[0].valid_rollouts.reward_mean == first
    assert last > first + 0.2
    steps = steps_of(said)
    assert [one.step for one in steps] == list(range(1, 25))
    assert all((one.kl or 0) >= 0 and one.served_difference is not None for one in steps)
    assert max(one.served_difference or 0 for one in steps) < 1e-4
    assert (steps[-1].kl or 0) > (steps[0].kl or 0)
    assert [one.step for one in steps if one.valid_rollouts] == [8, 16, 24]
    exports = [message for message in said if isinstance(message, Exported)]
    assert [(one.metrics.step, one.final) for one in exports] == [(8, False), (16, False), (24, True)]
    assert len({wanted.sha256 for wanted in sampler.asked if not wanted.validation}) == 24
    chance = random.Random(0)
    run(spec, tmp_path / "shuffled", lambda item, text: chance.random())
    first, *_, last = regraded(tmp_path / "shuffled")
    assert last < first + 0.1


def regraded(folder: Path) -> list[float]:
    """Return what share_of_vowels would have been at each evaluation of a job that had another reward."""
    files = sorted((folder / "rollouts").glob("valid-*.jsonl"))
    texts = [[one.text for group in read_rollouts(file)[1] for one in group.samples] for file in files]
    return [sum(share_of_vowels({}, text) for text in some) / len(some) for some in texts]


@pytest.mark.parametrize(
    ("stop", "saved", "asked_again"),
    [({"stop_at": 4}, 3, [4, 5, 6]), ({"stop_at_valid": 4}, 3, [4, 5, 6]), ({"stop_at_valid": 3}, 2, [3, 4, 5, 6])],
)
def test_resumed_training_equals_uninterrupted(
    tiny_base: Path, tmp_path: Path, stop: dict[str, int], saved: int, asked_again: list[int]
) -> None:
    """However it is stopped: while a step's answers are awaited, or those to the validation file after its update."""
    chosen = replace(CHOSEN, eval_interval=1, eval_samples=1, group_size=4)
    spec = grpo_spec(tiny_base, tmp_path, n_epochs=2, checkpoint_interval=1, reinforcement=chosen)
    whole, _ = run(spec, tmp_path / "whole", share_of_vowels)
    with pytest.raises(StopRequested) as stopped:
        run(spec, tmp_path / "cut", share_of_vowels, **stop)
    assert stopped.value.step == saved
    resumed, sampler = run(spec, tmp_path / "cut", share_of_vowels)
    assert [wanted.step for wanted in sampler.asked if not wanted.validation] == asked_again
    assert steps_of(resumed) == steps_of(whole)
    assert [one.sha256 for one in resumed if isinstance(one, Exported)] == [
        one.sha256 for one in whole if isinstance(one, Exported)
    ]


def test_answers_of_another_model_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    """A server that goes on with the first adapter is found out as soon as the adapter has moved."""
    spec = grpo_spec(tiny_base, tmp_path)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / SPEC_FILE).write_bytes(encoder.encode(spec))
    sampler = Sampler(spec, tmp_path / "job", share_of_vowels)
    first: list[WantRollouts] = []

    def stale(wanted: WantRollouts) -> Rollouts | None:
        first.append(wanted)
        return sampler(replace(wanted, folder=first[0].folder))

    with pytest.raises(TrainingFailed, match="were not sampled from the model") as refused:
        train(tmp_path / "job", lambda _: None, lambda: False, ask=stale)
    assert refused.value.code == "parity_mismatch"
    assert first[-1].step <= 6


@pytest.mark.parametrize(
    ("served", "is_refused"),
    [
        (Served(0.05, moved=0.08, moved_served=0.094, clip_share=0.0), False),  # bf16: the noise is half of the move
        (Served(0.08, moved=0.08, moved_served=0.001, clip_share=0.0), True),  # a server that has the start
        (Served(0.05, moved=0.05, moved_served=0.001, clip_share=0.0), False),  # no more than noise may be
        (Served(0.2, moved=0.3, moved_served=0.4, clip_share=0.0), True),  # far from all that is known
    ],
)
def test_server_has_to_be_nearer_to_the_model_than_to_its_start(served: Served, is_refused: bool) -> None:
    with pytest.raises(TrainingFailed) if is_refused else nullcontext():
        check_served(served, torch.bfloat16, 3)


def test_step_whose_answers_were_all_cut_off_updates_nothing(tiny_base: Path, tmp_path: Path) -> None:
    chosen = replace(CHOSEN, mask_truncated=True, max_completion_tokens=2, group_size=2)
    spec = replace(grpo_spec(tiny_base, tmp_path, n_epochs=1, reinforcement=chosen), validation_path=None)
    known: list[int] = []
    history = History(tmp_path / "job", Path(spec.adapters_folder))

    def report(message: Message) -> None:
        said.append(message)
        if isinstance(message, Exported):
            known.append(len(history.exports()))

    said: list[Message] = []
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / SPEC_FILE).write_bytes(encoder.encode(spec))
    train(tmp_path / "job", report, lambda: False, ask=all_cut_off(Sampler(spec, tmp_path / "job", share_of_vowels)))
    steps = steps_of(said)
    assert [one.step for one in steps] == [1, 2, 3]
    for one in steps:
        assert (one.train_loss, one.train_mean_token_accuracy, one.grad_norm, one.tokens) == (0.0, 0.0, 0.0, 0)
        assert one.kl is None and one.served_difference is None and one.rollouts is not None
    assert known == [1], "an export is in the history before anybody hears of it"


def all_cut_off(sampler: Sampler) -> Callable[[WantRollouts], Rollouts | None]:
    def ask(wanted: WantRollouts) -> Rollouts | None:
        given = sampler(wanted)
        assert given is not None
        header, groups = read_rollouts(Path(given.path))
        cut = [replace(one, samples=[replace(each, finish_reason="length") for each in one.samples]) for one in groups]
        Path(given.path).write_bytes(write_rollouts(header, cut))
        return given

    return ask


def test_rehearsal_tries_as_many_rows_as_a_step_has(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    cut = Reader.pieces

    def pieces(reader: Reader, rows: Sequence[Any]) -> list[list[Any]]:
        tried.append(len(rows))
        return cut(reader, rows)

    monkeypatch.setattr(Reader, "pieces", pieces)
    spec = replace(grpo_spec(tiny_base, tmp_path), validation_path=None)
    with pytest.raises(StopRequested):
        run(spec, tmp_path / "job", share_of_vowels, stop_at=1)
    assert tried[0] == spec.batch_size * CHOSEN.group_size


def test_only_models_that_may_become_checkpoints_are_exported(tiny_base: Path, tmp_path: Path) -> None:
    """An evaluation whose reward two earlier ones have reached leaves no adapter."""
    given = iter([0.0, *(reward for reward in (0.5, 0.7, 0.6, 0.5, 0.9, 1.0))])
    chosen = replace(CHOSEN, eval_interval=1, eval_samples=1, group_size=2, max_completion_tokens=2)
    spec = grpo_spec(tiny_base, tmp_path, n_epochs=2, reinforcement=chosen)

    def rated(sampler: Sampler) -> Callable[[WantRollouts], Rollouts | None]:
        def ask(wanted: WantRollouts) -> Rollouts | None:
            answered = sampler(wanted)
            if wanted.validation and answered is not None:
                header, groups = read_rollouts(Path(answered.path))
                stats = replace(header.stats, reward_mean=next(given))
                Path(answered.path).write_bytes(write_rollouts(replace(header, stats=stats), groups))
            return answered

        return ask

    said: list[Message] = []
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / SPEC_FILE).write_bytes(encoder.encode(spec))
    train(tmp_path / "job", said.append, lambda: False, ask=rated(Sampler(spec, tmp_path / "job", share_of_vowels)))
    exports = [(one.metrics.step, one.final) for one in said if isinstance(one, Exported)]
    assert exports == [(1, False), (2, False), (3, False), (5, False), (6, True)]


def test_step_without_any_reward_fails_the_job(tiny_base: Path, tmp_path: Path) -> None:
    spec = replace(grpo_spec(tiny_base, tmp_path), validation_path=None)
    calls = iter(range(10_000))
    with pytest.raises(TrainingFailed, match="No answer of step 2 can be learnt from"):
        run(spec, tmp_path / "job", lambda item, text: 1.0 if next(calls) < 32 else None)


def test_prompts_are_those_of_the_server(tiny_base: Path, tmp_path: Path) -> None:
    spec = grpo_spec(tiny_base, tmp_path)
    sampler = Sampler(spec, tmp_path, share_of_vowels)
    prompts = load_prompts(spec).train
    for prompt, item in zip(prompts, prompt_rows(12), strict=True):
        text = sampler._tokenizer.apply_chat_template(item["messages"], add_generation_prompt=True, tokenize=False)
        assert prompt.prompt == sampler._tokenizer(text, add_special_tokens=False)["input_ids"]
        assert prompt.width == len(prompt.prompt) + 6
