"""Loss and gradients equal those of plain transformers and peft, for every architecture, however rows are cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from services.trainer.data.cutting import R
from services.trainer.failures import TrainingFailed
from services.trainer.protocol import REFERENCE_FILE, TrainSpec
from services.trainer.training.model import build_model
from services.trainer.training.objectives import Objective, Preference, Supervised
from services.trainer.training.reading import Reader
from services.trainer.training.references import with_reference
from services.trainer.training.run_job import load_data, load_pairs
from services.trainer.training.session import TrainingSession
from tests.unit.trainer import reference
from tests.unit.trainer.reference import Gradients, Move, assert_equal
from tests.unit.trainer.test_trainer_dpo import dpo_spec, never
from tests.unit.trainer.tiny import make_spec
from tests.unit.trainer.tiny_models import ARCHITECTURES, save_tiny_model

REFUSED = ("phi",)
"""What is refused before training: its output layer has a bias."""
TRAINED = tuple(name for name in ARCHITECTURES if name not in REFUSED)
BATCH = 6
FLAT = ("flat", "flat, row by row", "flat, nothing shared")
WAYS = (*FLAT, "padded", "packed")


@pytest.fixture(scope="session", params=TRAINED)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base"), request.param)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base"), "llama")


def ours(
    objective: Objective[R], rows: Sequence[R], move: Move = reference.move_away_from_base
) -> tuple[float, Gradients]:
    """One forward_backward of a session whose parameters `move` has given the values that the other side has."""
    session = TrainingSession(objective)
    move(session.parameters)
    measured = session.forward_backward(rows)
    return measured.loss, {name: p.grad.clone() for name, p in session.parameters.items() if p.grad is not None}


def plain(spec: TrainSpec, loss: Any, *arguments: Any) -> tuple[float, Gradients]:
    model = reference.plain_model(spec)
    parameters = reference.trainable(model)
    reference.move_away_from_base(parameters)
    value = loss(model, *arguments)
    return value.item(), reference.gradients(value, parameters)


def reader(spec: TrainSpec, way: str) -> Reader:
    """Read rows flat (at once or row by row), or as the model's own code does (padded or packed)."""
    found = Reader(build_model(spec, why_plain="" if way in FLAT else way), packing=way == "packed")
    assert found.is_fast == (way in FLAT), found.model.plain_because
    if way == "flat, row by row":
        found.pieces = lambda rows: [[row] for row in rows]  # type: ignore[method-assign]
    if way == "flat, nothing shared":
        found.shares = False
    return found


@pytest.mark.parametrize("way", WAYS)
def test_supervised_loss_and_gradients_are_the_plain_ones(base: Path, tmp_path: Path, way: str) -> None:
    spec = make_spec(base, tmp_path)
    rows = load_data(spec).train[:BATCH]
    found = ours(Supervised(reader(spec, way)), rows)
    assert_equal(found, plain(spec, reference.sft_loss, rows))


@pytest.mark.parametrize("way", WAYS)
def test_preference_loss_and_gradients_are_the_plain_ones(base: Path, tmp_path: Path, way: str) -> None:
    spec = dpo_spec(base, tmp_path, beta=0.3)
    preference = Preference(reader(spec, way), spec.beta)
    pairs = with_reference(load_pairs(spec), preference, tmp_path / REFERENCE_FILE, never).train[:BATCH]
    assert_equal(ours(preference, pairs), plain(spec, reference.dpo_loss, pairs, spec.beta))


@pytest.mark.parametrize("way", ["flat", "padded"])
@pytest.mark.parametrize("method", ["supervised", "dpo"])
def test_quantised_loss_and_gradients_are_those_of_peft_on_bitsandbytes(
    llama: Path, tmp_path: Path, method: str, way: str
) -> None:
    changes = {"quantization": "nf4", "beta": 0.3}
    if method == "dpo":
        spec = dpo_spec(llama, tmp_path, **changes)
        preference = Preference(reader(spec, way), spec.beta)
        pairs = with_reference(load_pairs(spec), preference, tmp_path / REFERENCE_FILE, never).train[:BATCH]
        assert_equal(ours(preference, pairs), plain(spec, reference.dpo_loss, pairs, spec.beta))
    else:
        spec = make_spec(llama, tmp_path, **changes)
        rows = load_data(spec).train[:BATCH]
        found = ours(Supervised(reader(spec, way)), rows)
        assert_equal(found, plain(spec, reference.sft_loss, rows))
        unquantised = plain(make_spec(llama, tmp_path), reference.sft_loss, rows)
        with pytest.raises(AssertionError):
            assert_equal(found, unquantised)


@pytest.mark.parametrize("architecture", REFUSED)
def test_what_cannot_be_trained_exactly_is_refused(tmp_path: Path, architecture: str) -> None:
    base = save_tiny_model(tmp_path / "base", architecture)
    with pytest.raises(TrainingFailed, match="behind the output layer"):
        build_model(make_spec(base, tmp_path))


def test_a_wrong_gradient_is_told_from_a_right_one(llama: Path, tmp_path: Path) -> None:
    """The comparison itself: one row less, or one parameter off by a thousandth, is not equal."""
    spec = make_spec(llama, tmp_path)
    rows = load_data(spec).train[:BATCH]
    expected = plain(spec, reference.sft_loss, rows)
    with pytest.raises(AssertionError):
        assert_equal(plain(spec, reference.sft_loss, rows[1:]), expected)
    name = next(iter(expected[1]))
    off = {**expected[1], name: expected[1][name] * 1.001}
    with pytest.raises(AssertionError, match=name):
        assert_equal((expected[0], off), expected)
    assert_equal((expected[0], {n: g + torch.zeros_like(g) for n, g in expected[1].items()}), expected)
