"""Options of a job: filled in, carried out, and told truly by the adapter that comes out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from msgspec.structs import replace
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from services.trainer.data.batches import collate_packed
from services.trainer.data.cutting import packs
from services.trainer.failures import TrainingFailed
from services.trainer.jobs.options import effective, options_of, reinforcement_options, resolve_beta, settle
from services.trainer.jobs.parents import AdapterShape, parent_folder, read_shape
from services.trainer.protocol import (
    SPEC_FILE,
    Exported,
    Message,
    Requantized,
    Stepped,
    TrainSpec,
    encoder,
    spec_decoder,
)
from services.trainer.training.early_stopping import Verdict, judge
from services.trainer.training.model import build_model
from services.trainer.training.optim import learning_rate_at
from services.trainer.training.reading import Reader
from services.trainer.training.run_job import load_data
from services.trainer.training.run_job import train as train_job
from shared.adapters import CONFIG_NAME, verify_adapter
from shared.paths import Paths
from shared.records import JobRecord
from shared.schemas.graders import StringCheckGrader
from shared.schemas.methods import ReinforcementHyperparameters, ReinforcementMethod, SupervisedHyperparameters
from shared.schemas.options import EarlyStopping, ReinforcementOptions, ShownOptions, TrainingOptions
from shared.settings import Settings
from tests.api_server import make_adapter
from tests.unit.trainer.run import Run
from tests.unit.trainer.test_trainer_loop import assert_random_and_repeated, logits, stop_after, supervised, train
from tests.unit.trainer.tiny import make_spec

SETTINGS = Settings(lora_rank=8, max_model_len=512)
DEFAULTS = TrainingOptions(
    finetuning_type="lora", rank=8, alpha=16.0, dropout=0.0, use_rslora=False, quantization="none", packing=False,
    max_length=512, overlong="refuse",
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    lr_schedule="linear", warmup_ratio=0.05, weight_decay=0.0, max_grad_norm=1.0, priority="normal",
    gradient_accumulation_steps=1, dtype="auto",
)  # fmt: skip


def test_every_option_that_was_left_out_is_filled_in() -> None:
    assert effective(TrainingOptions(), SETTINGS, 2048) == DEFAULTS
    assert effective(DEFAULTS, SETTINGS, 2048) == DEFAULTS
    assert effective(TrainingOptions(), SETTINGS, 256).max_length == 256
    assert effective(TrainingOptions(rank=4), SETTINGS, 2048).alpha == 8.0


def test_training_every_weight_has_no_adapter_and_full_precision() -> None:
    found = effective(TrainingOptions(finetuning_type="full"), SETTINGS, 2048)
    adapter = {"rank": None, "alpha": None, "dropout": None, "target_modules": None, "use_rslora": None}
    assert found == replace(DEFAULTS, finetuning_type="full", dtype="float32", **adapter)
    assert effective(found, SETTINGS, 2048) == found


def test_given_options_stay() -> None:
    given = TrainingOptions(
        finetuning_type="lora",
        rank=2, alpha=3.5, dropout=0.1, target_modules=["q_proj"], use_rslora=True, quantization="nf4", packing=True,
        max_length=64, overlong="drop", lr_schedule="cosine", warmup_ratio=0.0, weight_decay=0.1, max_grad_norm=0.5,
        early_stopping=EarlyStopping(patience=2), priority="high", gradient_accumulation_steps=2, dtype="float32",
        neftune_noise_alpha=5.0, checkpoint_interval=10, evaluation_interval=20,
    )  # fmt: skip
    assert effective(given, SETTINGS, 2048) == given


def test_adapter_shape_is_the_parent_s() -> None:
    shape = AdapterShape(rank=3, alpha=5.0, target_modules=("v_proj",), use_rslora=True)
    options = effective(TrainingOptions(dropout=0.2), SETTINGS, 2048, shape)
    assert (options.rank, options.alpha, options.target_modules, options.use_rslora) == (3, 5.0, ["v_proj"], True)
    assert options.dropout == 0.2


@pytest.mark.parametrize("option", [{"rank_pattern": {"q_proj": 2}}, {"alpha_pattern": {"q_proj": 2}}])
def test_parent_whose_layers_differ_is_refused(option: dict[str, Any], tmp_path: Path) -> None:
    """As other programs make them; training would take all layers for alike."""
    paths = Paths(tmp_path)
    parent = make_adapter("ft:b:o::x")
    folder = parent_folder(paths, parent)
    folder.mkdir(parents=True)
    config: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "rank_pattern": {}}
    (folder / "adapter_config.json").write_bytes(msgspec.json.encode(config))
    assert read_shape(paths, parent).rank == 4
    (folder / "adapter_config.json").write_bytes(msgspec.json.encode(config | option))
    with pytest.raises(TrainingFailed, match="its layers differ in rank or alpha") as caught:
        read_shape(paths, parent)
    assert caught.value.code == "invalid_parent_model"


def test_a_queued_job_shows_what_it_will_train_with() -> None:
    asked = SupervisedHyperparameters()
    record = JobRecord(
        id="j", project="p", organization="o", created_at=0, model="b", training_file="f", seed=1, requested=asked,
        model_name="ft:b", method="dpo",
    )  # fmt: skip
    job = settle(record, 100, DEFAULTS).public()
    assert job.selftune == msgspec.convert(DEFAULTS, ShownOptions, from_attributes=True)
    assert job.method.dpo is not None and job.method.dpo.hyperparameters.beta == 0.1
    assert job.method.dpo.hyperparameters.n_epochs == 3
    assert settle(replace(record, method="supervised"), 100, DEFAULTS).resolved_beta is None
    assert replace(record, estimated_memory_bytes=7).public().selftune.estimated_memory_bytes == 7
    settled = settle(record, 300, replace(DEFAULTS, gradient_accumulation_steps=64))
    assert settled.resolved is not None
    assert settled.options.gradient_accumulation_steps == settled.resolved.batch_size == 4
    assert resolve_beta(0.3) == 0.3


def test_reinforcement_fills_in_its_own_options_and_numbers() -> None:
    grader = StringCheckGrader(name="n", input="i", reference="r", operation="eq")
    method = ReinforcementMethod(grader=grader, hyperparameters=ReinforcementHyperparameters(n_epochs=2))
    record = JobRecord(
        id="j", project="p", organization="o", created_at=0, model="b", training_file="f", seed=1,
        requested=SupervisedHyperparameters(n_epochs=2), model_name="ft:b", method="reinforcement",
        reinforcement=method,
    )  # fmt: skip
    options = options_of(record, SETTINGS, 2048, None)
    own = options.reinforcement
    assert own == ReinforcementOptions(
        group_size=8, temperature=1.0, max_completion_tokens=256, kl_coefficient=0.01, clip_low=0.2, clip_high=0.28,
        scale_advantages=True, mask_truncated=False, updates_per_step=1,
    )  # fmt: skip
    settled = settle(record, 80, options)
    assert options_of(settled, SETTINGS, 2048, None) == settled.options == options
    assert settled.resolved == SupervisedHyperparameters(n_epochs=2, batch_size=8, learning_rate_multiplier=1.0)
    job = settled.public()
    assert job.method.reinforcement is not None and job.method.reinforcement.grader == grader
    shown = job.method.reinforcement.hyperparameters
    assert shown == settled.resolved_reinforcement
    assert (shown.eval_interval, shown.compute_multiplier, shown.reasoning_effort) == (2, 1.0, "default")
    assert job.selftune.reinforcement == own
    stored = msgspec.json.decode(msgspec.json.encode(settled), type=JobRecord)
    assert stored == settled


def test_reinforcement_keeps_what_was_asked_for() -> None:
    asked = ReinforcementOptions(temperature=0.7, kl_coefficient=0.0, scale_advantages=False, mask_truncated=True)
    own = reinforcement_options(asked, 64, 0.25)
    assert (own.group_size, own.max_completion_tokens) == (2, 32)
    assert (own.temperature, own.kl_coefficient, own.scale_advantages, own.mask_truncated) == (0.7, 0.0, False, True)
    assert reinforcement_options(replace(asked, group_size=5), 4096, "auto").group_size == 5


def test_spec_of_an_earlier_version_is_read_with_the_old_values() -> None:
    old = (
        b'{"job_id":"j","base_id":"b","base_folder":"/b","base_fingerprint":"f","adapters_folder":"/a",'
        b'"training_path":"/t","n_epochs":1,"batch_size":1,"learning_rate_multiplier":1.0,"seed":1,"alpha":32}'
    )
    spec = spec_decoder.decode(old)
    assert (spec.method, spec.alpha, spec.use_rslora, spec.parent_folder) == ("supervised", 32, False, None)
    assert (spec.lr_schedule, spec.warmup_ratio, spec.weight_decay, spec.max_grad_norm) == ("linear", 0.05, 0.0, 1.0)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.1, 1.0])
def test_learning_rate_rises_over_the_warm_up_and_is_never_zero(schedule: Any, warmup_ratio: float) -> None:
    rates = [learning_rate_at(s, 50, 1e-3, schedule=schedule, warmup_ratio=warmup_ratio) for s in range(1, 51)]
    warmup = max(1, round(50 * warmup_ratio))
    assert max(rates) == rates[warmup - 1] == pytest.approx(1e-3)
    assert rates[:warmup] == sorted(rates[:warmup]) and rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[-1] > 0
    if schedule == "constant":
        assert set(rates[warmup:]) <= {1e-3}


def test_cosine_is_half_way_down_in_the_middle() -> None:
    rates = [learning_rate_at(step, 101, 1.0, schedule="cosine", warmup_ratio=0.0) for step in range(1, 102)]
    assert (rates[0], rates[50]) == (1.0, pytest.approx(0.5, abs=0.01))
    assert rates[25] == pytest.approx(math.cos(math.pi / 8) ** 2, abs=0.01)


def test_rslora_scales_by_the_root_of_the_rank_and_the_export_says_so(tiny_base: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny_base, tmp_path, rank=4, alpha=6.5, use_rslora=True, targets=("q_proj", "down_proj"))
    run = train(spec, tmp_path)
    exported = run.exports[-1]
    config = msgspec.json.decode((Path(exported.folder) / CONFIG_NAME).read_bytes())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 6.5, True)
    assert config["target_modules"] == ["down_proj", "q_proj"]
    scalings = {
        module.scaling["default"] for module in run.session.model.module.modules() if isinstance(module, LoraLayer)
    }
    assert scalings == {6.5 / 4**0.5}
    assert {name.split(".")[-4] for name in run.session.parameters} == {"q_proj", "down_proj"}
    assert_loads_in_plain_peft(tiny_base, run, exported, rank=4)


def assert_loads_in_plain_peft(base_folder: Path, run: Run, exported: Exported, rank: int) -> None:
    """The exported folder gives plain PEFT the logits that the session has now."""
    folder = Path(exported.folder)
    verify_adapter(folder, base_folder=base_folder, base_id="tiny", max_rank=rank, expected_sha256=exported.sha256)
    base: Any = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, folder).eval()
    run.session.model.module.eval()
    tokens = torch.tensor([exported.probes[0]])
    with torch.no_grad():
        theirs = plain(input_ids=tokens).logits[0]
        ours = logits(run.session.model, exported.probes[0])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_dropout_changes_training_and_a_resumed_run_repeats_it(tiny_base: Path, tmp_path: Path) -> None:
    whole, rest = assert_random_and_repeated(tiny_base, tmp_path, dropout=0.3)
    assert rest.exports[-1].sha256 == whole.exports[-1].sha256
    assert not whole.session.objective.reader.shares  # type: ignore[attr-defined]


def test_weight_decay_and_clipping_reach_the_optimiser(tiny_base: Path, tmp_path: Path) -> None:
    plain = train(make_spec(tiny_base, tmp_path / "a"), tmp_path / "a")
    decayed = train(make_spec(tiny_base, tmp_path / "b", weight_decay=1.0), tmp_path / "b")
    assert norm_of(decayed) < norm_of(plain)
    session = supervised(make_spec(tiny_base, tmp_path / "c", max_grad_norm=1e-3))
    session.forward_backward(load_data(session_spec(tiny_base, tmp_path)).train[:4])
    before = {name: parameter.grad.clone() for name, parameter in session.parameters.items()}  # type: ignore[union-attr]
    torch.nn.utils.clip_grad_norm_(list(session.parameters.values()), session.max_grad_norm)
    after = sum(float(parameter.grad.square().sum()) for parameter in session.parameters.values()) ** 0.5  # type: ignore[union-attr]
    assert sum(float(value.square().sum()) for value in before.values()) ** 0.5 > 1e-3
    assert after == pytest.approx(1e-3, rel=1e-2)


def session_spec(tiny_base: Path, tmp_path: Path) -> TrainSpec:
    return make_spec(tiny_base, tmp_path / "c")


def norm_of(run: Run) -> float:
    return sum(float(p.detach().square().sum()) for n, p in run.session.parameters.items() if "lora_A" in n)


def test_learning_rate_of_a_job_follows_its_options(tiny_base: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny_base, tmp_path, lr_schedule="constant", warmup_ratio=0.5, learning_rate_multiplier=2.0)
    rates = [metrics.learning_rate for metrics in train(spec, tmp_path).steps]
    assert rates[:6] == pytest.approx([1e-3 * step / 6 for step in range(1, 7)])
    assert rates[6:] == [1e-3] * 6


# --- going on from a fine-tuned model


@pytest.fixture
def parent(tiny_base: Path, tmp_path: Path) -> Exported:
    folder = tmp_path / "parent"
    return train(make_spec(tiny_base, folder, targets=("q_proj", "up_proj"), use_rslora=True), folder).exports[-1]


def child_spec(tiny_base: Path, folder: Path, parent: Exported, **changes: Any) -> TrainSpec:
    return make_spec(
        tiny_base, folder, targets=("q_proj", "up_proj"), use_rslora=True, parent_folder=parent.folder,
        parent_sha256=parent.sha256, **changes,
    )  # fmt: skip


def test_training_goes_on_from_the_parent_s_weights(tiny_base: Path, tmp_path: Path, parent: Exported) -> None:
    spec = child_spec(tiny_base, tmp_path / "child", parent)
    start = supervised(spec).evaluate(load_data(spec).valid)
    assert start.loss == pytest.approx(parent.metrics.full_valid_loss, rel=1e-6)
    run = train(spec, tmp_path / "child")
    assert run.steps[-1].full_valid_loss < start.loss  # type: ignore[operator]
    assert run.exports[-1].sha256 != parent.sha256
    assert_loads_in_plain_peft(tiny_base, run, run.exports[-1], rank=4)


def test_resumed_training_from_a_parent_equals_uninterrupted(tiny_base: Path, tmp_path: Path, parent: Exported) -> None:
    whole = train(child_spec(tiny_base, tmp_path / "a", parent), tmp_path / "a")
    spec = child_spec(tiny_base, tmp_path / "b", parent)
    first = train(spec, tmp_path / "b", stop_after(4))
    rest = train(spec, tmp_path / "b")
    assert first.curve() == whole.curve()[: len(first.steps)]
    assert rest.curve() == whole.curve()
    assert rest.exports[-1].sha256 == whole.exports[-1].sha256


def test_parent_that_is_gone_or_of_another_form_ends_with_a_reason(
    tiny_base: Path, tmp_path: Path, parent: Exported
) -> None:
    wrong = make_spec(tiny_base, tmp_path / "c", parent_folder=parent.folder)
    with pytest.raises(TrainingFailed, match="another form") as caught:
        build_model(wrong)
    assert caught.value.code == "invalid_parent_model"
    gone = replace(wrong, parent_folder=str(tmp_path / "nothing"))
    with pytest.raises(TrainingFailed, match="not in the data folder") as missing:
        build_model(gone)
    assert missing.value.code == "model_not_found"


# --- early stopping


@pytest.mark.parametrize(
    ("losses", "rule", "expected"),
    [
        ([3.0], EarlyStopping(), Verdict(0, over=False)),
        ([3.0, 2.0, 1.0], EarlyStopping(), Verdict(2, over=False)),
        ([3.0, 2.0, 2.5], EarlyStopping(), Verdict(1, over=True)),
        ([3.0, 2.0, 2.5], EarlyStopping(patience=2), Verdict(1, over=False)),
        ([3.0, 2.0, 2.5, 1.9], EarlyStopping(patience=2), Verdict(3, over=False)),
        ([3.0, 2.95, 2.9], EarlyStopping(patience=2, min_delta=0.2), Verdict(2, over=True)),
        ([2.0, 2.0], EarlyStopping(), Verdict(0, over=True)),
    ],
)
def test_patience_counts_epochs_without_improvement(
    losses: list[float], rule: EarlyStopping, expected: Verdict
) -> None:
    assert judge(losses, rule) == expected


def overfitting(tiny_base: Path, folder: Path, **changes: Any) -> TrainSpec:
    """A job whose validation loss falls for some epochs and then rises: its held-out answers are others."""
    spec = make_spec(
        tiny_base, folder, n_epochs=12, learning_rate_multiplier=20.0, lr_schedule="constant",
        early_stopping=EarlyStopping(patience=2), **changes,
    )  # fmt: skip
    path = Path(spec.validation_path or "")
    path.write_bytes(path.read_bytes().replace(b'"fruit"', b'"animal"'))
    return spec


def test_training_stops_early_and_the_best_epoch_is_the_final_model(tiny_base: Path, tmp_path: Path) -> None:
    run = train(overfitting(tiny_base, tmp_path), tmp_path)
    losses = [m.full_valid_loss for m in run.steps if m.full_valid_loss is not None]
    best = losses.index(min(losses))
    assert 2 < len(losses) < 12 and best == len(losses) - 3
    final = run.exports[-1]
    assert final.final and final.metrics.step == 6 * (best + 1)
    assert [e.metrics.step for e in run.exports[:-1]] == [6 * n for n in range(1, len(losses) + 1)]
    assert not any(e.final for e in run.exports[:-1])
    assert final.sha256 == run.exports[best].sha256
    assert {metrics.total_steps for metrics in run.steps} == {72}
    assert final.trained_tokens == sum(metrics.tokens for metrics in run.steps)
    assert f"after epoch {len(losses)}" in final.remark and f"epoch {best + 1} (step" in final.remark
    assert run.session.evaluate(run.loop.data.valid).loss == pytest.approx(min(losses), rel=1e-6)
    assert_loads_in_plain_peft(tiny_base, run, final, rank=4)


@pytest.mark.parametrize("stopped_after", [5, 6, 13, 20])
def test_early_stopping_keeps_its_count_over_a_restart(tiny_base: Path, tmp_path: Path, stopped_after: int) -> None:
    whole = train(overfitting(tiny_base, tmp_path / "a"), tmp_path / "a")
    spec = overfitting(tiny_base, tmp_path / "b")
    train(spec, tmp_path / "b", stop_after(stopped_after))
    rest = train(spec, tmp_path / "b")
    assert rest.exports[-1].metrics.step == whole.exports[-1].metrics.step
    assert rest.exports[-1].sha256 == whole.exports[-1].sha256
    assert rest.loop.position == whole.loop.position
    again = train(spec, tmp_path / "b")
    assert (again.exports[-1].sha256, again.exports[-1].final) == (whole.exports[-1].sha256, True)
    assert again.loop.position == whole.loop.position


def test_patience_that_is_not_used_up_still_gives_the_best_epoch(tiny_base: Path, tmp_path: Path) -> None:
    spec = replace(overfitting(tiny_base, tmp_path), early_stopping=EarlyStopping(patience=50), n_epochs=8)
    run = train(spec, tmp_path)
    losses = [m.full_valid_loss for m in run.steps if m.full_valid_loss is not None]
    assert len(losses) == 8 and losses[-1] > min(losses)
    assert run.exports[-1].metrics.full_valid_loss == min(losses)
    assert run.exports[-1].remark.startswith("The final model is that of epoch")


# --- packing


def test_packed_row_does_not_see_its_neighbours(tiny_base: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny_base, tmp_path, packing=True)
    model = build_model(spec, why_plain="a test")
    rows = load_data(spec).train[:3]
    batch = collate_packed(rows)
    changed = batch.inputs_BT.clone()
    first = len(rows[0].tokens) - 1
    changed[:, :first] = (changed[:, :first] + 7) % 300
    with torch.no_grad():
        model.module.eval()
        before = model.read_padded(batch.inputs_BT, batch.positions_BT)
        after = model.read_padded(changed, batch.positions_BT)
    torch.testing.assert_close(after[:, first:], before[:, first:])
    assert not torch.allclose(after[:, :first], before[:, :first])


def test_packs_are_filled_and_long_rows_stand_alone(tiny_base: Path, tmp_path: Path) -> None:
    rows = load_data(make_spec(tiny_base, tmp_path)).train
    pieces = packs(rows, max_tokens=60)
    assert sorted(row.line for piece in pieces for row in piece) == sorted(row.line for row in rows)
    assert all(len(piece) == 1 or sum(row.n_tokens for row in piece) <= 60 for piece in pieces)
    assert len(pieces) < len(rows)
    assert packs(rows[:2], max_tokens=1) == [[row] for row in sorted(rows[:2], key=lambda row: -row.n_tokens)]


def test_packed_training_gives_the_same_curve_within_rounding(tiny_base: Path, tmp_path: Path) -> None:
    apart = train(make_spec(tiny_base, tmp_path / "a"), tmp_path / "a")
    packed = train(make_spec(tiny_base, tmp_path / "b", packing=True), tmp_path / "b")
    assert [m.train_loss for m in packed.steps] == pytest.approx([m.train_loss for m in apart.steps], rel=1e-4)
    assert packed.steps[-1].tokens == apart.steps[-1].tokens


def test_packing_is_refused_on_layers_that_would_mix_rows(tiny_base: Path, tmp_path: Path) -> None:
    model = build_model(make_spec(tiny_base, tmp_path))
    model.module.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(TrainingFailed, match="packing") as caught:
        Reader(model, packing=True)
    assert caught.value.code == "unsupported_option"


# --- a base in 4 bits


def test_quantised_base_learns_and_what_is_compared_with_the_server_is_not_quantised(
    tiny_base: Path, tmp_path: Path
) -> None:
    spec = make_spec(tiny_base, tmp_path, quantization="nf4", learning_rate_multiplier=20.0)
    (tmp_path / SPEC_FILE).write_bytes(encoder.encode(spec))
    messages: list[Message] = []
    served = train_job(tmp_path, messages.append, lambda: False)
    losses = [message.metrics.train_loss for message in messages if isinstance(message, Stepped)]
    plain = train(make_spec(tiny_base, tmp_path / "p", learning_rate_multiplier=20.0), tmp_path / "p")
    assert losses[-1] < losses[0] - 0.5
    assert losses != pytest.approx([m.train_loss for m in plain.steps], rel=1e-4)  # it was quantised …
    assert losses == pytest.approx([m.train_loss for m in plain.steps], rel=3e-2)  # … and not by much

    told, final = messages[-2:]
    assert isinstance(final, Exported) and final.final
    assert isinstance(told, Requantized) and told.held_out and told.n_rows == 6
    assert told.loss_as_trained == pytest.approx(losses_of(messages)[-1], rel=1e-6), "all six rows are few enough"
    assert told.loss_as_served != told.loss_as_trained
    assert told.loss_as_served == pytest.approx(told.loss_as_trained, rel=3e-2)
    assert {parameter.dtype for parameter in served.module.parameters()} == {torch.float32}
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, final.folder).eval()
    tokens = torch.tensor([final.probes[0]])
    with torch.no_grad():
        served.module.eval()
        ours = logits(served, final.probes[0])
        torch.testing.assert_close(ours, theirs(input_ids=tokens).logits[0], rtol=1e-4, atol=1e-5)


def losses_of(messages: Sequence[Message]) -> list[float]:
    found = [message.metrics.full_valid_loss for message in messages if isinstance(message, Stepped)]
    return [loss for loss in found if loss is not None]


def test_quantised_training_resumes(tiny_base: Path, tmp_path: Path) -> None:
    whole = train(make_spec(tiny_base, tmp_path / "a", quantization="nf4"), tmp_path / "a")
    spec = make_spec(tiny_base, tmp_path / "b", quantization="nf4")
    first = train(spec, tmp_path / "b", stop_after(4))
    rest = train(spec, tmp_path / "b")
    assert first.curve() == whole.curve()[: len(first.steps)]
    assert rest.curve() == whole.curve()
    assert rest.exports[-1].sha256 == whole.exports[-1].sha256
