"""Direct preference optimisation: pairs from rows, the textbook's loss and gradients, a reference that stays."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from services.trainer.data.pairs import Pair, tokenize_pairs
from services.trainer.failures import StopRequested
from services.trainer.jobs.narration import step_event
from services.trainer.protocol import REFERENCE_FILE, Message, TrainSpec
from services.trainer.training.loop import TrainingLoop
from services.trainer.training.losses import OutputLayer, chunked_logprobs, dpo_losses
from services.trainer.training.model import build_model
from services.trainer.training.objectives import Preference
from services.trainer.training.reading import Reader
from services.trainer.training.references import with_reference
from services.trainer.training.run_job import load_pairs
from services.trainer.training.session import TrainingSession
from shared.errors import InvalidTrainingData
from shared.preference_data import PreferenceExample
from tests.unit.trainer.run import Run
from tests.unit.trainer.test_trainer_loop import stop_after
from tests.unit.trainer.test_trainer_loop import train as train_supervised
from tests.unit.trainer.tiny import make_spec, preference_rows, tiny_tokenizer, write_rows


def never() -> bool:
    return False


def dpo_spec(base: Path, folder: Path, **changes: Any) -> TrainSpec:
    values: dict[str, Any] = {
        "method": "dpo", "learning_rate_multiplier": 40.0,
        "training_path": str(write_rows(folder / "train-pairs.jsonl", preference_rows(24))),
        "validation_path": str(write_rows(folder / "valid-pairs.jsonl", preference_rows(6))),
    }  # fmt: skip
    return make_spec(base, folder, **{**values, **changes})


def prepare(spec: TrainSpec, folder: Path, *, fast: bool = True) -> tuple[TrainingSession[Pair], Any]:
    torch.set_num_threads(1)
    model = build_model(spec, why_plain="" if fast else "a test")
    objective = Preference(Reader(model, packing=spec.packing), spec.beta)
    data = with_reference(load_pairs(spec), objective, folder / REFERENCE_FILE, never)
    return TrainingSession(objective), data


def train(spec: TrainSpec, folder: Path, should_stop: Callable[[], bool] = never) -> Run[Pair]:
    session, data = prepare(spec, folder)
    messages: list[Message] = []
    run = Run(session, TrainingLoop(session, spec, data, folder, messages.append), messages)
    run.loop.resume()
    with suppress(StopRequested):
        run.loop.run(should_stop)
    return run


# --- pairs


def preference(**changes: Any) -> PreferenceExample:
    row: dict[str, Any] = {
        "input": {"messages": [{"role": "user", "content": "dog?"}, {"role": "assistant", "content": "what"},
                               {"role": "user", "content": "red apple?"}]},
        "preferred_output": [{"role": "assistant", "content": "fruit"}],
        "non_preferred_output": [{"role": "assistant", "content": "animal"}],
    }  # fmt: skip
    return msgspec.convert({**row, **changes}, PreferenceExample)


def learnt(example: Any, tokenizer: Any) -> str:
    return str(tokenizer.decode([t for t, flag in zip(example.tokens, example.supervised, strict=True) if flag]))


def test_only_the_last_answers_are_compared_and_both_follow_the_same_prompt() -> None:
    tokenizer = tiny_tokenizer()
    twice = [{"role": "assistant", "content": "apple"}, {"role": "assistant", "content": "fruit"}]
    [pair, longer] = tokenize_pairs(
        [(1, preference()), (2, preference(preferred_output=twice))], tokenizer, max_length=99, param="training_file"
    )
    assert learnt(pair.chosen, tokenizer) == "fruit<|im_end|>" == learnt(longer.chosen, tokenizer)
    assert learnt(pair.rejected, tokenizer) == "animal<|im_end|>"
    assert pair.chosen.prompt == pair.rejected.prompt == pair.prompt
    assert (pair.width, pair.n_tokens, pair.sides) == (
        max(len(pair.chosen.tokens), len(pair.rejected.tokens)), len(pair.chosen.tokens) + len(pair.rejected.tokens), 2
    )  # fmt: skip
    assert math.isnan(pair.reference_chosen)


@pytest.mark.parametrize("side", ["preferred_output", "non_preferred_output"])
def test_pair_with_a_side_that_is_too_long_is_refused_with_its_line(side: str) -> None:
    long = preference(**{side: [{"role": "assistant", "content": "dog " * 90}]})
    with pytest.raises(InvalidTrainingData, match=r"line 7: .* more than the 64") as caught:
        tokenize_pairs([(3, preference()), (7, long)], tiny_tokenizer(), max_length=64, param="validation_file")
    assert (caught.value.param, caught.value.code) == ("validation_file", "invalid_validation_file")


# --- loss


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunked_log_probabilities_and_their_gradient_equal_the_full_ones(chunk: int) -> None:
    torch.manual_seed(1)
    hidden = torch.randn(23, 16, requires_grad=True)
    weight, targets, scale = torch.randn(50, 16), torch.randint(0, 50, (23,)), torch.randn(23)
    logits = hidden @ weight.T
    expected = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
    [expected_gradient] = torch.autograd.grad((expected * scale).sum(), hidden)

    found, hits = chunked_logprobs(hidden, OutputLayer(weight), targets, chunk=chunk)
    [gradient] = torch.autograd.grad((found * scale).sum(), hidden)

    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    assert hits.tolist() == (logits.argmax(1) == targets).tolist()


def test_dpo_loss_is_the_paper_s() -> None:
    chosen, rejected, reference = torch.tensor([-3.0, -9.0]), torch.tensor([-5.0, -4.0]), torch.tensor([1.0, -6.0])
    losses, margins = dpo_losses(chosen, rejected, reference, beta=0.5)
    assert margins.tolist() == [0.5, 0.5]
    assert losses.tolist() == pytest.approx([-math.log(1 / (1 + math.exp(-0.5)))] * 2)


def textbook(session: TrainingSession[Pair], pairs: list[Pair], beta: float) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss in the words of Rafailov et al., with full logits in float64 and PEFT's own switch for the reference."""
    model: Any = session.model.module.double().eval()

    def logprob(example: Any) -> torch.Tensor:
        tokens = torch.tensor([list(example.tokens)])
        logprobs = model(input_ids=tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
        summed: torch.Tensor = (logprobs * torch.tensor(list(example.supervised[1:]))).sum()
        return summed

    losses = []
    for pair in pairs:
        with torch.no_grad(), model.disable_adapter():
            reference = logprob(pair.chosen) - logprob(pair.rejected)
        ratio = logprob(pair.chosen) - logprob(pair.rejected) - reference
        losses.append(-torch.nn.functional.logsigmoid(beta * ratio))
    loss = torch.stack(losses).mean()
    session.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss), {name: p.grad.clone() for name, p in session.parameters.items() if p.grad is not None}


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("max_tokens", [60, 8192], ids=["pair by pair", "at once"])
def test_loss_and_gradients_equal_the_textbook_s(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: bool, max_tokens: int
) -> None:
    spec = dpo_spec(tiny_base, tmp_path, beta=0.3, packing=packing)
    session, data = prepare(spec, tmp_path, fast=False)
    reader = session.objective.reader
    cut = type(reader).pieces
    monkeypatch.setattr(
        reader, "pieces", lambda rows: [[row] for row in rows] if max_tokens == 60 else cut(reader, rows)
    )
    torch.manual_seed(1)
    for name, parameter in session.parameters.items():
        if "lora_B" in name:  # a model that has moved away from its reference
            torch.nn.init.normal_(parameter, std=0.1)
    pairs = list(data.train[:5])
    measured = session.forward_backward(pairs)
    found = {name: p.grad.clone() for name, p in session.parameters.items() if p.grad is not None}
    expected, gradients = textbook(session, pairs, 0.3)
    assert measured.loss == pytest.approx(expected, rel=1e-5) != pytest.approx(math.log(2), rel=1e-3)
    assert found.keys() == gradients.keys() == session.parameters.keys()
    for name, value in gradients.items():
        torch.testing.assert_close(found[name].double(), value, rtol=2e-3, atol=2e-6, msg=name)
    rewards = measured.rewards
    assert rewards is not None and rewards.chosen is not None and rewards.rejected is not None
    assert rewards.margin == pytest.approx(rewards.chosen - rewards.rejected, abs=1e-5)


# --- training


def test_first_loss_is_ln_2_and_margins_grow(tiny_base: Path, tmp_path: Path) -> None:
    run = train(dpo_spec(tiny_base, tmp_path, n_epochs=6, learning_rate_multiplier=200.0), tmp_path)
    first, last = run.steps[0], run.steps[-1]
    assert first.train_loss == pytest.approx(math.log(2), abs=1e-6)
    assert first.rewards_margin == pytest.approx(0, abs=1e-6) == first.rewards_chosen
    assert last.train_loss < 0.6
    assert (last.full_valid_rewards_margin or 0) > (run.steps[5].full_valid_rewards_margin or 0) > 0
    assert (last.full_valid_rewards_accuracy, last.rewards_accuracy) == (1.0, 1.0)
    assert last.full_valid_loss is not None and last.full_valid_loss < 0.6
    assert max(m.learning_rate for m in run.steps) == pytest.approx(200 * 5e-5)
    told = step_event(last)
    assert {"rewards_chosen", "rewards_rejected", "rewards_margin", "rewards_accuracy"} <= told.data.keys()
    assert run.exports[-1].final and run.exports[-1].probes


def test_supervised_steps_tell_of_no_rewards(tiny_base: Path, tmp_path: Path) -> None:
    run = train_supervised(make_spec(tiny_base, tmp_path, n_epochs=1), tmp_path)
    assert not any("rewards" in name for name in step_event(run.steps[0]).data)


@pytest.mark.parametrize("stopped_after", [0, 4, 6])
def test_resumed_training_equals_uninterrupted(tiny_base: Path, tmp_path: Path, stopped_after: int) -> None:
    whole = train(dpo_spec(tiny_base, tmp_path / "a", dropout=0.1), tmp_path / "a")
    spec = dpo_spec(tiny_base, tmp_path / "b", dropout=0.1)
    first = train(spec, tmp_path / "b", stop_after(stopped_after))
    kept = (tmp_path / "b" / REFERENCE_FILE).stat().st_mtime_ns
    rest = train(spec, tmp_path / "b")
    curve = {metrics.step: metrics for metrics in [*first.curve(), *rest.curve()]}
    assert list(curve.values()) == whole.curve()
    assert rest.exports[-1].sha256 == whole.exports[-1].sha256
    assert (tmp_path / "b" / REFERENCE_FILE).stat().st_mtime_ns == kept


def test_reference_of_a_job_with_a_parent_is_the_parent(tiny_base: Path, tmp_path: Path) -> None:
    parent = train_supervised(make_spec(tiny_base, tmp_path / "p"), tmp_path / "p").exports[-1]
    from_base = prepare(dpo_spec(tiny_base, tmp_path / "a"), tmp_path / "a")[1]
    spec = dpo_spec(tiny_base, tmp_path / "b", parent_folder=parent.folder, parent_sha256=parent.sha256)
    session, from_parent = prepare(spec, tmp_path / "b")
    assert abs(from_parent.train[0].reference_chosen - from_base.train[0].reference_chosen) > 0.1
    assert session.evaluate(from_parent.valid).loss == pytest.approx(math.log(2), abs=1e-6)


def test_reference_that_cannot_be_read_is_made_again(tiny_base: Path, tmp_path: Path) -> None:
    spec = dpo_spec(tiny_base, tmp_path)
    first = prepare(spec, tmp_path)[1]
    (tmp_path / REFERENCE_FILE).write_bytes(b'{"train": [')
    assert prepare(spec, tmp_path)[1] == first


def test_stop_while_the_reference_is_made_keeps_nothing(tiny_base: Path, tmp_path: Path) -> None:
    spec = dpo_spec(tiny_base, tmp_path)
    objective = Preference(Reader(build_model(spec)), 0.1)
    with pytest.raises(StopRequested) as caught:
        with_reference(load_pairs(spec), objective, tmp_path / REFERENCE_FILE, lambda: True)
    assert caught.value.step == 0
    assert not (tmp_path / REFERENCE_FILE).exists()
