"""Training every weight: right, resumable, and written as a model that loads anywhere."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.trainer.base.weights import whole_digest
from services.trainer.protocol import CHECKPOINTS_FOLDER, REFERENCE_FILE, TrainSpec
from services.trainer.standalone import ExportRefused
from services.trainer.training.checkpoints import saved_points
from services.trainer.training.early_stopping import Verdict
from services.trainer.training.model import build_model
from services.trainer.training.objectives import Preference, Supervised
from services.trainer.training.optim import BASE_LEARNING_RATE, base_learning_rate
from services.trainer.training.references import with_reference
from services.trainer.training.run_job import load_data, load_pairs
from shared.schemas.options import EarlyStopping
from tests.unit.trainer import reference
from tests.unit.trainer.reference import assert_equal
from tests.unit.trainer.test_reference import BATCH, TRAINED, llama, ours, reader
from tests.unit.trainer.test_trainer_dpo import dpo_spec, never
from tests.unit.trainer.test_trainer_loop import logits, stop_after, train
from tests.unit.trainer.tiny import make_spec
from tests.unit.trainer.tiny_models import save_tiny_model

__all__ = ["llama"]

WAYS = ("flat", "padded")


def full_spec(base: Path, folder: Path, **changes: Any) -> TrainSpec:
    return make_spec(base, folder, finetuning_type="full", **changes)


def nudge(parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """Move weights a little from the base, the same whoever loaded them."""
    with torch.no_grad():
        for number, name in enumerate(sorted(parameters)):
            noise = torch.randn(parameters[name].shape, generator=torch.Generator().manual_seed(number))
            parameters[name].mul_(1 + 0.05 * noise)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("architecture", TRAINED)
def test_loss_and_every_gradient_are_those_of_plain_transformers(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, architecture: str, way: str
) -> None:
    spec = full_spec(save_tiny_model(tmp_path_factory.mktemp("base"), architecture), tmp_path)
    rows = load_data(spec).train[:BATCH]
    found = ours(Supervised(reader(spec, way)), rows, nudge)
    plain = reference.plain_model(spec)
    nudge(reference.trainable(plain))
    loss = reference.sft_loss(plain, rows)
    assert_equal(found, (loss.item(), reference.gradients(loss, reference.trainable(plain))))


@pytest.mark.parametrize("way", WAYS)
def test_preference_loss_and_every_gradient_are_those_of_plain_transformers(
    llama: Path, tmp_path: Path, way: str
) -> None:
    spec = dpo_spec(llama, tmp_path, finetuning_type="full", beta=0.3)
    preference = Preference(reader(spec, way), spec.beta)
    pairs = with_reference(load_pairs(spec), preference, tmp_path / REFERENCE_FILE, never).train[:BATCH]
    found = ours(preference, pairs, nudge)
    plain = reference.plain_model(spec)
    expected = reference.start_logprobs(plain, pairs)
    nudge(reference.trainable(plain))
    loss = reference.dpo_loss_from(plain, pairs, expected, spec.beta)
    assert_equal(found, (loss.item(), reference.gradients(loss, reference.trainable(plain))))


def test_exported_model_loads_in_transformers_and_says_the_same(tiny_base: Path, tmp_path: Path) -> None:
    run = train(full_spec(tiny_base, tmp_path, learning_rate_multiplier=40.0), tmp_path)
    [final] = run.exports
    folder = Path(final.folder)
    assert final.final and folder.name == final.sha256 == whole_digest(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)("what is a red apple")["input_ids"]
    run.session.model.module.eval()
    with torch.no_grad():
        loaded = model(torch.tensor([tokens])).logits[0]
        torch.testing.assert_close(loaded, logits(run.session.model, tokens), rtol=1e-4, atol=1e-5)
        base = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
        assert (base(torch.tensor([tokens])).logits[0] - loaded).abs().max() > 0.1, "nothing was learnt"
    stored, before = load_file(folder / "model.safetensors"), load_file(tiny_base / "model.safetensors")
    assert stored.keys() == before.keys()
    assert all(not torch.equal(stored[name], before[name]) for name in stored), "every weight is trained"
    assert str(tmp_path) not in (folder / "config.json").read_text() + (folder / "manifest.json").read_text()


def test_training_of_every_weight_learns_faster_than_its_smaller_rate_suggests(tiny_base: Path, tmp_path: Path) -> None:
    assert base_learning_rate("supervised", "full") == pytest.approx(BASE_LEARNING_RATE / 10)
    run = train(full_spec(tiny_base, tmp_path, learning_rate_multiplier=40.0, n_epochs=12), tmp_path)
    assert run.steps[0].train_mean_token_accuracy < 0.1
    assert (run.steps[-1].full_valid_mean_token_accuracy or 0) > 0.7


@pytest.mark.parametrize("stopped_after", [3, 6, 11])
def test_resumed_training_equals_uninterrupted(tiny_base: Path, tmp_path: Path, stopped_after: int) -> None:
    whole = train(full_spec(tiny_base, tmp_path / "a"), tmp_path / "a")
    train(full_spec(tiny_base, tmp_path / "b"), tmp_path / "b", stop_after(stopped_after))
    rest = train(full_spec(tiny_base, tmp_path / "b"), tmp_path / "b")
    assert rest.curve() == whole.curve()
    assert [exported.sha256 for exported in rest.exports] == [exported.sha256 for exported in whole.exports]


def test_best_epoch_becomes_the_model_from_the_resume_point_kept_for_it(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_is_best = Verdict(best=0, over=False)
    monkeypatch.setattr("services.trainer.training.loop.judge", lambda *_: first_is_best)
    changes = {"early_stopping": EarlyStopping(), "n_epochs": 4, "checkpoint_interval": 2}
    run = train(full_spec(tiny_base, tmp_path, **changes), tmp_path)
    points = [point.name for point in saved_points(tmp_path / CHECKPOINTS_FOLDER)]
    assert points == ["step-00000024", "step-00000022", "step-00000020", "step-00000006"]
    [final] = run.exports
    assert final.metrics.step == 6 and "step 6" in final.remark
    stored = load_file(Path(final.folder) / "model.safetensors")
    kept = load_file(tmp_path / CHECKPOINTS_FOLDER / "step-00000006" / "state.safetensors")
    for name, tensor in stored.items():
        torch.testing.assert_close(tensor, kept[f"adapter.{name}"], rtol=0, atol=0)


def test_base_whose_files_name_weights_otherwise_is_refused_before_it_is_trained(llama: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(llama, tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.extra.weight"] = torch.ones(2)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportRefused, match=r"layers\.0\.extra"):
        build_model(full_spec(base, tmp_path))


def test_weights_keep_the_type_of_the_base_s_files(tmp_path: Path, tiny_base: Path) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    halves = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(halves, base / "model.safetensors", metadata={"format": "pt"})
    run = train(full_spec(base, tmp_path, n_epochs=1), tmp_path)
    stored = load_file(Path(run.exports[-1].folder) / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert {p.dtype for p in run.session.parameters.values()} == {torch.float32}, "trained in full precision"
