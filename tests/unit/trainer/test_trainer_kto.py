"""Kahneman-Tversky optimisation: rows and their partners, the paper's loss, resuming, learning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from services.trainer.data.chat import Example
from services.trainer.data.cutting import FLAT_TOKENS, MICRO_BATCH_TOKENS, PACKED_TOKENS
from services.trainer.data.dataset import Dataset
from services.trainer.data.labelled import Labelled, with_mismatched
from services.trainer.failures import StopRequested
from services.trainer.jobs.narration import step_event
from services.trainer.jobs.options import resolve_weights
from services.trainer.protocol import REFERENCE_FILE, Message, TrainSpec
from services.trainer.training.kto import Kto
from services.trainer.training.loop import TrainingLoop
from services.trainer.training.losses import kto_losses
from services.trainer.training.model import build_model
from services.trainer.training.reading import Reader
from services.trainer.training.references import with_reference
from services.trainer.training.run_job import load_labelled, make_kto
from services.trainer.training.session import TrainingSession
from shared.schemas.methods import LabelWeights
from tests.unit.trainer import reference
from tests.unit.trainer.run import Run
from tests.unit.trainer.test_trainer_dpo import learnt, never
from tests.unit.trainer.test_trainer_loop import stop_after
from tests.unit.trainer.tiny import labelled_rows, make_spec, tiny_tokenizer, write_rows

UP = 1.0
"""With this sign move_a_little() makes other rows' answers likelier, so the divergence is above 0."""


def kto_spec(base: Path, folder: Path, **changes: Any) -> TrainSpec:
    values: dict[str, Any] = {
        "method": "kto", "learning_rate_multiplier": 40.0, "undesirable_weight": 2.0,
        "training_path": str(write_rows(folder / "train-labelled.jsonl", labelled_rows(24))),
        "validation_path": str(write_rows(folder / "valid-labelled.jsonl", labelled_rows(6))),
    }  # fmt: skip
    return make_spec(base, folder, **{**values, **changes})


def prepare(spec: TrainSpec, folder: Path, way: str = "flat") -> tuple[Kto, Dataset[Labelled]]:
    torch.set_num_threads(1)
    reader = Reader(build_model(spec, why_plain="" if way == "flat" else way), packing=way == "packed")
    kto = make_kto(spec, reader)
    return kto, with_reference(load_labelled(spec), kto, folder / REFERENCE_FILE, never)


def train(spec: TrainSpec, folder: Path, should_stop: Callable[[], bool] = never) -> Run[Labelled]:
    kto, data = prepare(spec, folder)
    session = TrainingSession(kto)
    messages: list[Message] = []
    run = Run(session, TrainingLoop(session, spec, data, folder, messages.append), messages)
    run.loop.resume()
    with suppress(StopRequested):
        run.loop.run(should_stop)
    return run


# --- rows


def test_last_answer_is_labelled_however_the_row_is_written(tiny_base: Path, tmp_path: Path) -> None:
    asked = [
        {"role": "user", "content": "dog?"}, {"role": "assistant", "content": "what"},
        {"role": "user", "content": "red apple?"},
    ]  # fmt: skip
    answer = {"role": "assistant", "content": "fruit"}
    rows = [{"messages": [*asked, answer], "label": True}, {"prompt": asked, "completion": [answer], "label": False}]
    path = write_rows(tmp_path / "two.jsonl", rows)
    one, two = load_labelled(kto_spec(tiny_base, tmp_path, training_path=str(path), validation_path=None)).train
    assert (one.is_desirable, two.is_desirable) == (True, False)
    assert one.example.tokens.tolist() == two.example.tokens.tolist()
    assert learnt(one.example, tiny_tokenizer()) == "fruit<|im_end|>"
    assert (one.width, one.n_tokens, one.sides) == (len(one.example.tokens), len(one.example.tokens), 1)
    assert math.isnan(one.reference)


def example(prompt: list[int], answer: list[int]) -> Example:
    return Example(0, np.array([*prompt, *answer], np.int32), np.array([0] * len(prompt) + [1] * len(answer), np.uint8))


PARTNERS: list[tuple[list[int], list[int]]] = [
    ([1, 2, 3], [2, 0, 1]),
    ([1, 1, 2, 2], [3, 3, 1, 1]),
    ([1, 2, 1], [1, 0, 1]),
    ([1, 1, 1], [2, 0, 1]),
    ([1], [0]),
]


@pytest.mark.parametrize(("prompts", "partners"), PARTNERS)
def test_mismatched_answer_is_that_of_the_last_row_with_another_prompt(prompts: list[int], partners: list[int]) -> None:
    rows = with_mismatched(
        [example([9, prompt], [100 + row, 7]) for row, prompt in enumerate(prompts)], [True] * len(prompts),
        max_length=99,
    )  # fmt: skip
    assert [row.mismatched.tokens.tolist() for row in rows] == [
        [9, prompt, 100 + partner, 7] for prompt, partner in zip(prompts, partners, strict=True)
    ]
    assert {tuple(row.mismatched.supervised.tolist()) for row in rows} == {(0, 0, 1, 1)}


def test_mismatched_row_is_cut_at_its_right() -> None:
    rows = with_mismatched([example([1, 2, 3], [4]), example([5], [6, 7, 8])], [True, False], max_length=4)
    assert rows[0].mismatched.tokens.tolist() == [1, 2, 3, 6]
    assert rows[1].mismatched.tokens.tolist() == [5, 4]


@pytest.mark.parametrize("way", ["flat", "padded", "packed"])
def test_reference_reads_no_more_at_once_than_training(
    tiny_base: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One long answer makes the short prompt beside it a wide row, which pads those that are read with it."""
    most = {"flat": FLAT_TOKENS, "padded": MICRO_BATCH_TOKENS, "packed": PACKED_TOKENS}[way]
    rows = labelled_rows(100)
    rows[50]["messages"][-1]["content"] = "fruit " * 400
    path = write_rows(tmp_path / "long.jsonl", rows)
    spec = kto_spec(tiny_base, tmp_path, training_path=str(path), max_length=1000)
    wide = [row.mismatched.width for row in load_labelled(spec).train if row.mismatched.width > 4 * row.width]
    assert wide and wide[0] * 50 > MICRO_BATCH_TOKENS, "beside the short rows it pads them to more than the limit"
    sizes: list[int] = []
    read = Reader.read

    def counting(self: Reader, examples: Sequence[Example]) -> Any:
        width = max(example.width for example in examples)
        sizes.append(width * len(examples) if way == "padded" else sum(example.n_tokens for example in examples))
        return read(self, examples)

    monkeypatch.setattr(Reader, "read", counting)
    _, data = prepare(spec, tmp_path, way)
    assert len(sizes) > 2 and max(sizes) <= most
    assert not any(math.isnan(row.reference) or math.isnan(row.reference_mismatched) for row in data.train)


# --- weights


WEIGHTS: list[tuple[float | str, float | str, int, int, float, float]] = [
    ("auto", "auto", 10, 10, 1, 1),
    ("auto", "auto", 10, 40, 4, 1),
    ("auto", "auto", 30, 10, 1, 3),
    (2, "auto", 10, 40, 2, 0.5),
    ("auto", 3, 40, 10, 0.75, 3),
    (1.5, 0.2, 1, 99, 1.5, 0.2),
    ("auto", "auto", 1, 5000, 1000, 1),
]


@pytest.mark.parametrize(("desirable", "undesirable", "n_good", "n_bad", "good", "bad"), WEIGHTS)
def test_weights_that_are_left_open_balance_the_labels(
    desirable: Any, undesirable: Any, n_good: int, n_bad: int, good: float, bad: float
) -> None:
    found = resolve_weights(LabelWeights(desirable=desirable, undesirable=undesirable), n_good, n_bad)
    assert (found.desirable, found.undesirable) == (good, bad)


# --- loss


def test_loss_is_the_paper_s() -> None:
    logratios, desirable = torch.tensor([1.0, 3.0]), torch.tensor([True, False])
    losses = kto_losses(logratios, desirable, 2.0, beta=0.5)
    assert losses.tolist() == pytest.approx([1 - 1 / (1 + math.exp(0.5))] * 2)


def paper_loss(model: Any, rows: list[Labelled], spec: TrainSpec, references: Tensor) -> tuple[Tensor, float]:
    """Equations 6 to 8 on padded batches with whole logits; `references` are the matched answers', then the others'."""
    sides = [*(row.example for row in rows), *(row.mismatched for row in rows)]
    matched, mismatched = (reference.answer_logprobs(model, sides) - references).chunk(2)
    point = mismatched.mean().clamp(min=0).detach()
    good = torch.tensor([row.is_desirable for row in rows])
    values = torch.where(
        good,
        spec.desirable_weight * torch.sigmoid(spec.beta * (matched - point)),
        spec.undesirable_weight * torch.sigmoid(spec.beta * (point - matched)),
    )
    weights = torch.where(good, spec.desirable_weight, spec.undesirable_weight)
    return (weights - values).mean(), float(point)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("way", ["flat", "padded", "packed"])
def test_loss_and_gradients_are_the_plain_ones(tiny_base: Path, tmp_path: Path, way: str, sign: float) -> None:
    spec = kto_spec(tiny_base, tmp_path, beta=0.3, desirable_weight=1.5, undesirable_weight=0.7)
    kto, data = prepare(spec, tmp_path, way)
    rows = list(data.train[:6])
    session = TrainingSession(kto)
    reference.move_a_little(session.parameters, sign)
    measured = session.forward_backward(rows)
    found = {name: p.grad.clone() for name, p in session.parameters.items() if p.grad is not None}

    model = reference.plain_model(spec)
    sides = [*(row.example for row in rows), *(row.mismatched for row in rows)]
    with model.disable_adapter(), torch.no_grad():
        references = reference.answer_logprobs(model, sides)
    parameters = reference.trainable(model)
    reference.move_a_little(parameters, sign)
    loss, point = paper_loss(model, rows, spec, references)
    reference.assert_equal((measured.loss, found), (loss.item(), reference.gradients(loss, parameters)))
    assert measured.divergence == pytest.approx(point, abs=1e-4)
    assert (point > 0.01) == (sign == UP), "both sides of 0 are tried"


# --- training


def test_rewards_part(tiny_base: Path, tmp_path: Path) -> None:
    run = train(kto_spec(tiny_base, tmp_path, n_epochs=6, learning_rate_multiplier=200.0), tmp_path)
    first, last = run.steps[0], run.steps[-1]
    assert 0.5 - 1e-4 <= first.train_loss <= 1.0 + 1e-4
    assert first.kl == pytest.approx(0, abs=1e-4)
    assert (last.full_valid_rewards_margin or 0) > (run.steps[5].full_valid_rewards_margin or 0) > 0
    assert last.full_valid_loss is not None and last.full_valid_loss < (run.steps[5].full_valid_loss or 0) < 4 / 6
    told = step_event(last).data
    assert {"full_valid_kl", "full_valid_rewards_accuracy", "kl", "rewards_accuracy"} <= told.keys()
    assert run.exports[-1].final and run.exports[-1].probes
    manifest = msgspec.json.decode((Path(run.exports[-1].folder) / "manifest.json").read_bytes())
    assert manifest["hyperparameters"]["undesirable_weight"] == 2.0


def test_batch_of_one_label_says_nothing_of_the_other(tiny_base: Path, tmp_path: Path) -> None:
    kto, data = prepare(kto_spec(tiny_base, tmp_path), tmp_path)
    good = [row for row in data.train if row.is_desirable][:2]
    measured = kto.measure(good, backward=False)
    assert measured.loss == pytest.approx(0.5, abs=1e-5)
    assert measured.rewards is not None
    assert (measured.rewards.rejected, measured.rewards.margin) == (None, None)
    [bad] = [row for row in data.train if not row.is_desirable][:1]
    assert kto.measure([bad], backward=False).loss == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("stopped_after", [0, 7])
def test_resumed_training_equals_uninterrupted(tiny_base: Path, tmp_path: Path, stopped_after: int) -> None:
    whole = train(kto_spec(tiny_base, tmp_path / "a", dropout=0.1), tmp_path / "a")
    spec = kto_spec(tiny_base, tmp_path / "b", dropout=0.1)
    first = train(spec, tmp_path / "b", stop_after(stopped_after))
    rest = train(spec, tmp_path / "b")
    curve = {metrics.step: metrics for metrics in [*first.curve(), *rest.curve()]}
    assert list(curve.values()) == whole.curve()
    assert rest.exports[-1].sha256 == whole.exports[-1].sha256
