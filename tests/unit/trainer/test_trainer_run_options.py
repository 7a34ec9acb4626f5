"""Options that steer the run: pieces of a batch, noise, numbers, and when it saves and evaluates."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from services.trainer.protocol import CHECKPOINTS_FOLDER
from services.trainer.training.checkpoints import saved_points
from services.trainer.training.noise import add_noise
from services.trainer.training.run_job import load_data
from shared.schemas.options import EarlyStopping
from tests.unit.trainer.test_trainer_loop import assert_random_and_repeated, gradient, stop_after, supervised, train
from tests.unit.trainer.tiny import make_spec


def test_accumulated_pieces_have_the_loss_and_gradient_of_the_whole_batch(tiny_base: Path, tmp_path: Path) -> None:
    whole = supervised(make_spec(tiny_base, tmp_path, batch_size=7))
    pieces = supervised(make_spec(tiny_base, tmp_path, batch_size=7, gradient_accumulation_steps=3))
    for session in (whole, pieces):
        torch.manual_seed(1)
        for name, parameter in session.parameters.items():
            if "lora_B" in name:  # zero at the start, which would leave lora_A without a gradient
                torch.nn.init.normal_(parameter, std=0.1)
    rows = load_data(make_spec(tiny_base, tmp_path)).train[:7]
    assert [len(piece) for piece in pieces.objective.reader.pieces(rows)] == [3, 3, 1]
    assert len(whole.objective.reader.pieces(rows)) == 1
    expected, found = gradient(whole, rows), gradient(pieces, rows)
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    for name, value in expected[1].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-6, msg=name)


def test_noise_changes_training_alone_and_a_resumed_run_repeats_it(tiny_base: Path, tmp_path: Path) -> None:
    whole, _ = assert_random_and_repeated(tiny_base, tmp_path, neftune_noise_alpha=5.0)
    assert not whole.session.objective.reader.is_fast


def test_noise_has_the_size_of_the_paper_for_each_row() -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings = nn.Embedding(10, 64)

        def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
            embedded: torch.Tensor = self.embeddings(input_ids)
            return embedded

    model = Backbone()
    add_noise(model, model.embeddings, alpha=5.0)
    tokens_1T = torch.zeros((1, 120), dtype=torch.int64)
    clean = model.eval()(input_ids=tokens_1T)
    model.train()
    padded = (model(input_ids=tokens_1T) - clean).abs()
    positions = torch.cat((torch.arange(100), torch.arange(20)))[None]
    packed = (model(input_ids=tokens_1T, position_ids=positions) - clean).abs()
    assert float(padded.max()) == pytest.approx(5 / math.sqrt(120 * 64), rel=0.01)
    assert float(packed[:, :100].max()) == pytest.approx(5 / math.sqrt(100 * 64), rel=0.01)
    assert float(packed[:, 100:].max()) == pytest.approx(5 / math.sqrt(20 * 64), rel=0.01)


def test_resume_points_come_at_their_interval_and_at_epochs_ends(tiny_base: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny_base, tmp_path, checkpoint_interval=4)
    points = tmp_path / CHECKPOINTS_FOLDER
    train(spec, tmp_path, stop_after(5))
    assert [point.name[-2:] for point in saved_points(points)] == ["05", "04"]
    train(spec, tmp_path)
    assert [point.name[-2:] for point in saved_points(points)] == ["12", "08", "06"]


def test_whole_validation_file_is_evaluated_at_its_interval(tiny_base: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny_base, tmp_path, evaluation_interval=4, early_stopping=EarlyStopping(patience=5))
    run = train(spec, tmp_path)
    assert [metrics.step for metrics in run.steps if metrics.full_valid_loss is not None] == [4, 6, 8, 12]
    assert run.exports[-1].metrics.step in (6, 12), "early stopping looks at epochs"


def test_dtype_is_what_was_asked_for(tiny_base: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny_base, tmp_path / "b", dtype="bfloat16")
    run = train(spec, tmp_path / "b")
    assert run.session.model.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in run.session.parameters.values()} == {torch.float32}
    assert run.steps[-1].train_loss < run.steps[0].train_loss
    plain = train(make_spec(tiny_base, tmp_path / "f", dtype="float32"), tmp_path / "f")
    assert plain.session.model.dtype == torch.float32
    assert run.steps[-1].train_loss != plain.steps[-1].train_loss
    assert run.steps[-1].train_loss == pytest.approx(plain.steps[-1].train_loss, rel=2e-2)
