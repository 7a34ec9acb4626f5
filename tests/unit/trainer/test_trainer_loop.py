"""Training a tiny model: repeatable, resumable, exported as PEFT expects it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from msgspec.structs import replace
from peft import PeftModel
from transformers import AutoModelForCausalLM

from services.trainer.data.chat import Example
from services.trainer.data.dataset import PROBE_TOKENS, Dataset
from services.trainer.failures import NonFiniteLoss, StopRequested
from services.trainer.protocol import CHECKPOINTS_FOLDER, Message, ServedSample, TrainSpec
from services.trainer.training.checkpoints import KEPT, saved_points
from services.trainer.training.loop import TrainingLoop
from services.trainer.training.model import TrainableModel, build_model
from services.trainer.training.objectives import Supervised
from services.trainer.training.parity import measure_parity, score
from services.trainer.training.reading import Reader
from services.trainer.training.run_job import load_data
from services.trainer.training.session import TrainingSession
from shared.adapters import verify_adapter
from tests.unit.trainer.run import Run
from tests.unit.trainer.tiny import make_spec

STEPS = 12


def supervised(spec: TrainSpec, *, fast: bool = True) -> TrainingSession[Example]:
    why_plain = "" if fast and spec.neftune_noise_alpha is None else "a test"
    return TrainingSession(
        Supervised(
            Reader(build_model(spec, why_plain=why_plain), packing=spec.packing, most_rows=spec.rows_at_once)
        ),
        weight_decay=spec.weight_decay, max_grad_norm=spec.max_grad_norm, noise_alpha=spec.neftune_noise_alpha,
    )  # fmt: skip


def logits(model: TrainableModel, tokens: Sequence[int]) -> torch.Tensor:
    """What the model says after each token: (T, V)."""
    row = np.array([*tokens, 0])  # the last token is only a target
    hidden_ND, _ = Reader(model).read([Example(0, row, np.arange(len(row)).clip(max=1).astype(np.uint8))])
    return model.head.logits(hidden_ND)


def train(
    spec: TrainSpec, folder: Path, should_stop: Callable[[], bool] = lambda: False, *, threads: int = 1
) -> Run[Example]:
    """Run a job in this process, as far as it goes."""
    torch.set_num_threads(threads)
    messages: list[Message] = []
    session = supervised(spec)
    run = Run(session, TrainingLoop(session, spec, load_data(spec), folder, messages.append), messages)
    run.loop.resume()
    with suppress(StopRequested):
        run.loop.run(should_stop)
    return run


def stop_after(steps: int) -> Callable[[], bool]:
    asked = iter(range(10_000))
    return lambda: next(asked) >= steps


def test_same_seed_gives_the_same_curve_and_the_same_adapter(tiny_base: Path, tmp_path: Path) -> None:
    first = train(make_spec(tiny_base, tmp_path / "a"), tmp_path / "a")
    again = train(make_spec(tiny_base, tmp_path / "b"), tmp_path / "b")
    other = train(make_spec(tiny_base, tmp_path / "c", seed=8), tmp_path / "c")
    assert first.curve() == again.curve()
    assert first.exports[-1].sha256 == again.exports[-1].sha256 != other.exports[-1].sha256
    assert [metrics.step for metrics in first.steps] == list(range(1, STEPS + 1))


def test_training_learns(tiny_base: Path, tmp_path: Path) -> None:
    run = train(make_spec(tiny_base, tmp_path, learning_rate_multiplier=40.0, n_epochs=12), tmp_path)
    # Random output embeddings are too small for confident answers, so the loss stays high; the right token still wins.
    assert run.steps[0].train_mean_token_accuracy < 0.1
    assert (run.steps[-1].full_valid_mean_token_accuracy or 0) > 0.7


def test_epoch_ends_carry_the_full_validation_and_an_export_follows(tiny_base: Path, tmp_path: Path) -> None:
    run = train(make_spec(tiny_base, tmp_path), tmp_path)
    with_full = [metrics.step for metrics in run.steps if metrics.full_valid_loss is not None]
    with_few = [metrics.step for metrics in run.steps if metrics.valid_loss is not None]
    assert with_full == [6, 12]
    assert with_few == [1, 5, 6, 10, 12]
    kinds = [type(message).__name__ for message in run.messages]
    assert kinds == [*["Stepped"] * 6, "Exported", *["Stepped"] * 6, "Exported"]
    assert [exported.final for exported in run.exports] == [False, True]
    assert run.exports[-1].trained_tokens == sum(metrics.tokens for metrics in run.steps)
    assert len(run.exports[-1].probes) == 2


def test_long_prompts_are_probed_by_their_beginning() -> None:
    """A job whose prompts are all long is compared with the served model, too."""
    tokens, supervised = np.arange(PROBE_TOKENS + 9, dtype=np.int32), np.zeros(PROBE_TOKENS + 9, np.uint8)
    supervised[-1] = 1
    row = Example(1, tokens, supervised)
    assert Dataset([row], []).probes(2) == [list(range(PROBE_TOKENS))]


def test_training_resumed_on_several_threads_is_as_close_as_they_compute(tiny_base: Path, tmp_path: Path) -> None:
    whole = train(make_spec(tiny_base, tmp_path / "a"), tmp_path / "a", threads=2)
    train(make_spec(tiny_base, tmp_path / "b"), tmp_path / "b", stop_after(8), threads=2)
    rest = train(make_spec(tiny_base, tmp_path / "b"), tmp_path / "b", threads=2)
    assert [metrics.step for metrics in rest.steps] == [metrics.step for metrics in whole.steps]
    for ours, theirs in zip(rest.steps, whole.steps, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-5)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)


@pytest.mark.parametrize("stopped_after", [0, 3, 6, 8, 11])
def test_resumed_training_equals_uninterrupted(tiny_base: Path, tmp_path: Path, stopped_after: int) -> None:
    whole = train(make_spec(tiny_base, tmp_path / "a"), tmp_path / "a")
    spec = make_spec(tiny_base, tmp_path / "b")
    first = train(spec, tmp_path / "b", stop_after(stopped_after))
    rest = train(spec, tmp_path / "b")
    assert len(first.steps) == stopped_after
    curve = {metrics.step: metrics for metrics in [*first.curve(), *rest.curve()]}
    assert list(curve.values()) == whole.curve()
    assert rest.exports[-1].sha256 == whole.exports[-1].sha256
    assert rest.exports[-1].trained_tokens == whole.exports[-1].trained_tokens
    assert [m.step for m in rest.loop.history.steps()] == list(range(1, STEPS + 1))


def test_crash_between_checkpoint_and_export_loses_no_report(tiny_base: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny_base, tmp_path)
    whole = train(spec, tmp_path)
    (tmp_path / "exports.jsonl").write_bytes(b"")
    again = train(spec, tmp_path)
    assert [metrics.step for metrics in again.steps] == list(range(1, STEPS + 1))
    assert [e.sha256 for e in again.exports] == [whole.exports[-1].sha256]


def test_damaged_checkpoint_is_passed_over(tiny_base: Path, tmp_path: Path) -> None:
    whole = train(make_spec(tiny_base, tmp_path / "a"), tmp_path / "a")
    spec = make_spec(tiny_base, tmp_path / "b")
    train(spec, tmp_path / "b", stop_after(8))
    newest, older = saved_points(tmp_path / "b" / CHECKPOINTS_FOLDER)
    assert (newest.name, older.name) == ("step-00000008", "step-00000006")
    os.truncate(newest / "state.safetensors", 1000)
    rest = train(spec, tmp_path / "b")
    assert [metrics.step for metrics in rest.steps] == list(range(1, STEPS + 1)), "6 are told again, in order"
    assert rest.exports[-1].sha256 == whole.exports[-1].sha256


def test_last_three_checkpoints_are_kept(tiny_base: Path, tmp_path: Path) -> None:
    train(make_spec(tiny_base, tmp_path, n_epochs=5, validation_path=None), tmp_path)
    names = [point.name for point in saved_points(tmp_path / CHECKPOINTS_FOLDER)]
    assert names == ["step-00000030", "step-00000024", "step-00000018"]
    assert len(names) == KEPT


def test_exported_adapter_loads_in_plain_peft_with_the_same_logits(tiny_base: Path, tmp_path: Path) -> None:
    run = train(make_spec(tiny_base, tmp_path), tmp_path)
    exported = run.exports[-1]
    folder = Path(exported.folder)
    verify_adapter(folder, base_folder=tiny_base, base_id="tiny", max_rank=4, expected_sha256=exported.sha256)
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, folder).eval()
    tokens = torch.tensor([exported.probes[0]])
    with torch.no_grad():
        theirs = plain(input_ids=tokens).logits[0]
        ours = logits(run.session.model, exported.probes[0])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_exported_folder_is_public_sorted_and_told_from_where_it_comes(tiny_base: Path, tmp_path: Path) -> None:
    exported = train(make_spec(tiny_base, tmp_path), tmp_path).exports[-1]
    folder = Path(exported.folder)
    assert folder.name == exported.sha256
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "manifest.json",
    ]  # fmt: skip
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    texts = {path.name: path.read_text() for path in folder.iterdir() if path.suffix != ".safetensors"}
    config = msgspec.json.decode(texts["adapter_config.json"])
    assert list(config) == sorted(config) and config["target_modules"] == sorted(config["target_modules"])
    assert config["base_model_name_or_path"] == "tiny"
    assert not any(str(tmp_path) in text or str(tiny_base) in text for text in texts.values())
    manifest = msgspec.json.decode(texts["manifest.json"])
    assert manifest["base"] == "tiny" and manifest["seed"] == 7 and manifest["step"] == STEPS
    assert not list(folder.parent.glob(".partial-*"))


def test_loss_equals_the_model_s_own_with_mask_and_labels(tiny_base: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny_base, tmp_path)
    session = supervised(spec, fast=False)
    rows = load_data(spec).train[:5]
    width = max(len(row.tokens) for row in rows)
    padding = [width - len(row.tokens) for row in rows]
    inputs = torch.tensor([[*row.tokens, *[0] * pad] for row, pad in zip(rows, padding, strict=True)])
    mask = torch.tensor([[1] * len(row.tokens) + [0] * pad for row, pad in zip(rows, padding, strict=True)])
    flags = torch.tensor([[*row.supervised, *[0] * pad] for row, pad in zip(rows, padding, strict=True)]).bool()
    causal: Any = session.model.module
    with torch.no_grad():
        expected = causal(input_ids=inputs, attention_mask=mask, labels=inputs.masked_fill(~flags, -100)).loss
    assert session.evaluate(rows).loss == pytest.approx(float(expected), rel=1e-5)


def assert_random_and_repeated(base: Path, folder: Path, **changes: Any) -> tuple[Run[Example], Run[Example]]:
    """Options that draw random numbers change training, and a resumed run draws the same; returns (whole, resumed)."""
    without = train(make_spec(base, folder / "n"), folder / "n")
    whole = train(make_spec(base, folder / "a", **changes), folder / "a")
    spec = make_spec(base, folder / "b", **changes)
    first = train(spec, folder / "b", stop_after(5))
    rest = train(spec, folder / "b")
    assert first.curve() == whole.curve()[: len(first.steps)]
    assert rest.curve() == whole.curve() != without.curve()
    rows = whole.loop.data.valid
    assert whole.session.evaluate(rows) == whole.session.evaluate(rows)
    return whole, rest


def gradient(session: TrainingSession[Example], rows: Sequence[Example]) -> tuple[float, dict[str, torch.Tensor]]:
    session.optimizer.zero_grad()
    loss = session.forward_backward(rows).loss
    return loss, {name: p.grad.clone() for name, p in session.parameters.items() if p.grad is not None}


@pytest.mark.parametrize("multiplier", [1e30, 1e43, 1e308])
def test_diverged_training_ends_with_a_reason(tiny_base: Path, tmp_path: Path, multiplier: float) -> None:
    with pytest.raises(NonFiniteLoss, match="learning_rate_multiplier") as caught:
        train(make_spec(tiny_base, tmp_path, learning_rate_multiplier=multiplier, n_epochs=4), tmp_path)
    assert caught.value.code == "non_finite_loss"


def test_parity_holds_for_the_same_model_and_not_for_another(tiny_base: Path, tmp_path: Path) -> None:
    run = train(make_spec(tiny_base, tmp_path), tmp_path)
    prompt = run.exports[-1].probes[0]
    answer: list[int] = []
    for _ in range(5):
        answer += score(run.session.model, [*prompt, *answer], [0]).best_tokens
    logprobs = score(run.session.model, prompt, answer).logprobs
    served = ServedSample(prompt=prompt, tokens=answer, logprobs=logprobs)

    same = measure_parity(run.session.model, [served])
    assert (same.agrees, same.n_tokens, same.n_argmax_equal) == (True, 5, 5)
    assert same.max_logprob_difference < 1e-5

    untrained = build_model(make_spec(tiny_base, tmp_path))
    assert not measure_parity(untrained, [served]).agrees
    assert not measure_parity(run.session.model, []).agrees
    wrong = replace(served, tokens=[(token + 1) % 300 for token in answer])
    assert not measure_parity(run.session.model, [wrong]).agrees
