"""ORPO and reward models: loss and gradients in plain words, learning, resuming."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from services.trainer.data.pairs import Pair
from services.trainer.failures import StopRequested
from services.trainer.protocol import Message, TrainSpec
from services.trainer.training.loop import TrainingLoop
from services.trainer.training.losses import bradley_terry_losses, orpo_losses
from services.trainer.training.model import build_model
from services.trainer.training.objectives import Objective, sides
from services.trainer.training.orpo import Orpo
from services.trainer.training.reading import Reader
from services.trainer.training.reward import BradleyTerry
from services.trainer.training.run_job import load_pairs
from services.trainer.training.session import TrainingSession
from tests.unit.trainer import reference
from tests.unit.trainer.reference import assert_equal
from tests.unit.trainer.run import Run
from tests.unit.trainer.test_trainer_dpo import dpo_spec, never
from tests.unit.trainer.test_trainer_loop import stop_after

WAYS = ("flat", "padded", "packed")


def reader(spec: TrainSpec, way: str = "flat") -> Reader:
    torch.set_num_threads(1)
    return Reader(build_model(spec, why_plain="" if way == "flat" else way), packing=way == "packed")


def objective(spec: TrainSpec, way: str = "flat") -> Objective[Pair]:
    read = reader(spec, way)
    return Orpo(read, spec.beta) if spec.method == "orpo" else BradleyTerry(read)


def train(spec: TrainSpec, folder: Path, should_stop: Callable[[], bool] = never) -> Run[Pair]:
    session = TrainingSession(objective(spec))
    messages: list[Message] = []
    run = Run(session, TrainingLoop(session, spec, load_pairs(spec), folder, messages.append), messages)
    run.loop.resume()
    with suppress(StopRequested):
        run.loop.run(should_stop)
    return run


def measured(spec: TrainSpec, pairs: list[Pair], way: str) -> tuple[float, reference.Gradients]:
    session = TrainingSession(objective(spec, way))
    reference.move_away_from_base(session.parameters)
    loss = session.forward_backward(pairs).loss
    return loss, {name: p.grad.clone() for name, p in session.parameters.items() if p.grad is not None}


# --- losses


def test_odds_ratio_s_loss_is_the_paper_s_and_certainty_is_finite() -> None:
    chosen, rejected = torch.tensor([math.log(0.8)]), torch.tensor([math.log(0.2)])
    odds_ratio = (0.8 / 0.2) / (0.2 / 0.8)
    assert orpo_losses(chosen, rejected).item() == pytest.approx(-math.log(odds_ratio / (1 + odds_ratio)))
    certain = torch.zeros(1, requires_grad=True)
    loss = orpo_losses(certain, rejected).sum()
    [gradient] = torch.autograd.grad(loss, certain)
    assert math.isfinite(loss.item()) and gradient.isfinite().all()


def test_bradley_terry_s_loss_is_minus_the_log_of_the_chance_to_be_preferred() -> None:
    chance = math.exp(2.0) / (math.exp(2.0) + math.exp(0.5))
    assert bradley_terry_losses(torch.tensor([2.0]), torch.tensor([0.5])).item() == pytest.approx(-math.log(chance))


def orpo_loss(model: Any, pairs: list[Pair], beta: float) -> Tensor:
    """Row by row with whole logits: cross entropy of the preferred conversations, and the answers' odds."""
    nll, odds, learnt = torch.zeros(()), [], 0
    for pair in pairs:
        means = []
        for side in (pair.chosen, pair.rejected):
            tokens = torch.tensor([side.tokens.tolist()])
            logprobs = model(input_ids=tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
            answer = torch.tensor(side.supervised[1:].tolist()).bool()
            means.append(logprobs[answer].mean())
            if side is pair.chosen:
                nll, learnt = nll - logprobs.sum(), learnt + len(logprobs)
        chances = [mean.exp() for mean in means]
        ratio = (chances[0] / (1 - chances[0])) / (chances[1] / (1 - chances[1]))
        odds.append(-torch.sigmoid(ratio.log()).log())
    return nll / learnt + beta * torch.stack(odds).mean()


@pytest.mark.parametrize("way", WAYS)
def test_odds_ratio_s_loss_and_gradients_are_the_plain_ones(tiny_base: Path, tmp_path: Path, way: str) -> None:
    spec = dpo_spec(tiny_base, tmp_path, method="orpo", beta=0.4)
    pairs = list(load_pairs(spec).train[:6])
    model = reference.plain_model(spec)
    parameters = reference.trainable(model)
    reference.move_away_from_base(parameters)
    loss = orpo_loss(model, pairs, spec.beta)
    assert_equal(measured(spec, pairs, way), (loss.item(), reference.gradients(loss, parameters)))


@pytest.mark.parametrize("way", WAYS)
def test_scores_are_read_at_the_end_of_the_answer(tiny_base: Path, tmp_path: Path, way: str) -> None:
    spec = dpo_spec(tiny_base, tmp_path, method="reward")
    rows = list(load_pairs(spec).train[:7])
    # Two sides that differ in one token have gradients that nearly cancel, which leaves rounding.
    pairs = [Pair(one.chosen, other.rejected) for one, other in pairwise(rows)]
    model = reference.plain_model(spec)
    parameters = reference.trainable(model)
    head = torch.nn.Parameter(torch.zeros(1, 64))
    parameters["score"] = head
    reference.move_away_from_base(parameters)
    scores = torch.stack(
        [
            model.base_model.model.model(input_ids=torch.tensor([side.tokens.tolist()])).last_hidden_state[0, -1]
            @ head[0]
            for side in sides(pairs)
        ]
    )
    chosen, rejected = scores.chunk(2)
    loss = -torch.sigmoid(chosen - rejected).log().mean()
    assert_equal(measured(spec, pairs, way), (loss.item(), reference.gradients(loss, parameters)))


# --- training


def test_odds_ratio_learns_the_answer_and_prefers_it(tiny_base: Path, tmp_path: Path) -> None:
    spec = dpo_spec(tiny_base, tmp_path, method="orpo", n_epochs=8, learning_rate_multiplier=125.0, beta=0.5)
    run = train(spec, tmp_path)
    first, last = run.steps[5], run.steps[-1]
    assert (last.full_valid_loss or 9) < (first.full_valid_loss or 0)
    assert last.full_valid_rewards_accuracy == 1.0
    assert last.rewards_margin == pytest.approx((last.rewards_chosen or 0) - (last.rewards_rejected or 0), abs=1e-5)
    assert max(m.learning_rate for m in run.steps) == pytest.approx(125 * 8e-5)
    assert "kl" not in msgspec.to_builtins(last)


@pytest.mark.parametrize("method", ["orpo", "reward"])
def test_resumed_training_equals_uninterrupted(tiny_base: Path, tmp_path: Path, method: str) -> None:
    whole = train(dpo_spec(tiny_base, tmp_path / "a", method=method, dropout=0.1), tmp_path / "a")
    spec = dpo_spec(tiny_base, tmp_path / "b", method=method, dropout=0.1)
    first = train(spec, tmp_path / "b", stop_after(7))
    rest = train(spec, tmp_path / "b")
    curve = {metrics.step: metrics for metrics in [*first.curve(), *rest.curve()]}
    assert list(curve.values()) == whole.curve()
    assert rest.exports[-1].sha256 == whole.exports[-1].sha256
