"""Loss, batches, learning rate, automatic hyperparameters."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
import torch

from services.trainer.data.batches import collate, epoch_batches
from services.trainer.data.chat import Example
from services.trainer.data.cutting import micro_batches
from services.trainer.jobs.hyperparameters import group_size, resolve, resolve_reinforcement
from services.trainer.training.losses import OutputLayer, chunked_logprobs, chunked_nll, score_tokens
from services.trainer.training.optim import BASE_LEARNING_RATE, learning_rate_at
from shared.schemas.methods import ReinforcementHyperparameters, SupervisedHyperparameters


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunked_loss_and_its_gradient_equal_the_full_ones(chunk: int) -> None:
    torch.manual_seed(1)
    hidden = torch.randn(23, 16, requires_grad=True)
    weight, targets = torch.randn(50, 16), torch.randint(0, 50, (23,))
    logits = hidden @ weight.T
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    [expected_gradient] = torch.autograd.grad(expected * 0.5, hidden)

    loss, correct = chunked_nll(hidden, OutputLayer(weight), targets, chunk=chunk)
    [gradient] = torch.autograd.grad(loss * 0.5, hidden)

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    assert correct == int((logits.argmax(1) == targets).sum())


@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.25, None), (1.0, 2.0), (3.0, 1.5)])
def test_gradients_reach_a_trained_output_layer_through_scales_and_caps(scale: float, cap: float | None) -> None:
    torch.manual_seed(1)
    hidden, weight = torch.randn(23, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    targets, upstream = torch.randint(0, 50, (23,)), torch.randn(23)
    logits = hidden @ weight.T * scale
    logits = logits if cap is None else torch.tanh(logits / cap) * cap
    logprobs = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]

    head = OutputLayer(weight, scale, cap)
    loss, correct = chunked_nll(hidden, head, targets, chunk=7)
    found, _ = chunked_logprobs(hidden, head, targets, chunk=7)
    torch.testing.assert_close(loss, -logprobs.sum())
    torch.testing.assert_close(found, logprobs)
    assert correct == int((logits.argmax(1) == targets).sum())
    for ours, theirs in ((loss * 0.5, -logprobs.sum() * 0.5), ((found * upstream).sum(), (logprobs * upstream).sum())):
        gradients = torch.autograd.grad(ours, (hidden, weight))
        torch.testing.assert_close(gradients, torch.autograd.grad(theirs, (hidden, weight), retain_graph=True))


def test_scores_are_log_softmax() -> None:
    hidden, weight = torch.randn(3, 4), torch.randn(6, 4)
    expected = (hidden @ weight.T).log_softmax(1)
    scores = score_tokens(hidden, OutputLayer(weight), torch.tensor([1, 2, 3]))
    torch.testing.assert_close(torch.tensor(scores.logprobs), expected[range(3), [1, 2, 3]])
    assert scores.best_tokens == expected.argmax(1).tolist()


def make_example(length: int, first: int = 1) -> Example:
    return Example(1, array("q", range(100, 100 + length)), bytes(first) + b"\x01" * (length - first))


def test_collate_points_each_target_at_the_place_before_it() -> None:
    batch = collate([make_example(4, first=2), make_example(3)])
    assert batch.inputs_BT.tolist() == [[100, 101, 102], [100, 101, 0]]
    places = list(zip(batch.rows_N.tolist(), batch.columns_N.tolist(), batch.targets_N.tolist(), strict=True))
    assert places == [(0, 1, 102), (0, 2, 103), (1, 0, 101), (1, 1, 102)]
    assert batch.n_tokens == 7


def test_an_epoch_visits_each_row_once_in_an_order_given_by_seed_and_epoch() -> None:
    lengths = [(i * 37) % 50 + 2 for i in range(103)]
    batches = epoch_batches(lengths, 8, seed=3, epoch=0)
    assert sorted(row for batch in batches for row in batch) == list(range(103))
    assert sorted(map(len, batches)) == [7, *[8] * 12]
    assert batches == epoch_batches(lengths, 8, seed=3, epoch=0)
    assert batches != epoch_batches(lengths, 8, seed=3, epoch=1)
    assert batches != epoch_batches(lengths, 8, seed=4, epoch=0)


def test_rows_of_a_batch_have_similar_lengths() -> None:
    lengths = [(i * 37) % 50 + 2 for i in range(256)]
    padded = sum(max(lengths[r] for r in batch) * len(batch) for batch in epoch_batches(lengths, 8, seed=3, epoch=0))
    assert padded < 1.1 * sum(lengths)


def test_micro_batches_stay_under_the_token_budget() -> None:
    pieces = micro_batches([make_example(n) for n in (5, 30, 8, 9, 40)], max_tokens=36)
    assert [[len(e.tokens) for e in piece] for piece in pieces] == [[40], [30], [9, 8, 5]]


def test_learning_rate_rises_then_falls_and_is_never_zero() -> None:
    rates = [learning_rate_at(step, 100, 2 * BASE_LEARNING_RATE) for step in range(1, 101)]
    assert max(rates) == rates[4] == pytest.approx(2 * BASE_LEARNING_RATE)
    assert rates[:5] == sorted(rates[:5]) and rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] > 0
    assert learning_rate_at(1, 1, BASE_LEARNING_RATE) == pytest.approx(BASE_LEARNING_RATE)


@pytest.mark.parametrize(
    ("n_examples", "expected"),
    [
        (10, (10, 1, 1.0)),
        (50, (6, 1, 1.0)),
        (100, (3, 2, 1.0)),
        (500, (3, 8, 1.0)),
        (4000, (2, 16, 1.41)),
        (20_000, (1, 16, 1.41)),
    ],
)
def test_auto_follows_from_the_number_of_rows(n_examples: int, expected: tuple[int, int, float]) -> None:
    found = resolve(SupervisedHyperparameters(), n_examples, "supervised")
    assert (found.n_epochs, found.batch_size, found.learning_rate_multiplier) == expected


@pytest.mark.parametrize(("n_examples", "batch_size"), [(10, 4), (200, 4), (500, 8), (20_000, 16)])
def test_auto_gives_kto_batches_of_four_rows_or_more(n_examples: int, batch_size: int) -> None:
    assert resolve(SupervisedHyperparameters(), n_examples, "kto").batch_size == batch_size


@pytest.mark.parametrize(
    ("n_prompts", "expected"),
    [
        (1, (10, 1, 1)),
        (5, (10, 5, 1)),
        (48, (10, 8, 6)),
        (100, (5, 8, 6)),
        (480, (1, 8, 6)),
        (5000, (1, 8, 62)),
    ],
)
def test_auto_gives_reinforcement_some_sixty_steps(n_prompts: int, expected: tuple[int, int, int]) -> None:
    found = resolve_reinforcement(ReinforcementHyperparameters(), n_prompts, answers=8)
    assert (found.n_epochs, found.batch_size, found.eval_interval) == expected
    assert (found.learning_rate_multiplier, found.compute_multiplier, found.eval_samples) == (1.0, 1.0, 1)


def test_given_hyperparameters_of_reinforcement_stay() -> None:
    asked = ReinforcementHyperparameters(
        n_epochs=2, batch_size=3, learning_rate_multiplier=0.5, compute_multiplier=2.0, eval_interval=7, eval_samples=4,
        reasoning_effort="low",
    )  # fmt: skip
    assert resolve_reinforcement(asked, 1000, answers=16) == asked
    own_group = resolve_reinforcement(ReinforcementHyperparameters(), 1000, answers=4)
    assert own_group.compute_multiplier == 0.5


@pytest.mark.parametrize(
    ("compute_multiplier", "answers"), [("auto", 8), (1.0, 8), (0.00002, 2), (0.5, 4), (2, 16), (10, 64)]
)
def test_group_size_follows_compute_multiplier(compute_multiplier: Any, answers: int) -> None:
    assert group_size(compute_multiplier) == answers


def test_given_hyperparameters_stay() -> None:
    asked = SupervisedHyperparameters(n_epochs=7, batch_size=3, learning_rate_multiplier=0.5)
    assert resolve(asked, 20_000, "supervised") == asked
    one = SupervisedHyperparameters(n_epochs=1, batch_size=1, learning_rate_multiplier=1.0)
    assert resolve(one, 20, "kto") == one
