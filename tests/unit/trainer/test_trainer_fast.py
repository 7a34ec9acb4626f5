"""The fast path: rows as a tree, parts that are replaced only where they compute the same, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from services.trainer.data.chat import Example
from services.trainer.data.segments import FlatBatch, lay_out
from services.trainer.fast import attention, linears
from services.trainer.fast.elementwise import rms_norm, swiglu
from services.trainer.training.model import TrainableModel, build_model
from services.trainer.training.run_job import load_data
from tests.unit.trainer.reference import assert_equal, move_away_from_base
from tests.unit.trainer.test_reference import TRAINED
from tests.unit.trainer.test_trainer_loop import gradient, supervised
from tests.unit.trainer.tiny import make_spec
from tests.unit.trainer.tiny_models import save_tiny_model

# --- the tree


def row(*tokens: int, learnt: int = 1) -> Example:
    mask = np.zeros(len(tokens), dtype=np.uint8)
    mask[-learnt:] = 1
    return Example(0, np.array(tokens, dtype=np.int32), mask)


def paths(batch: FlatBatch) -> list[list[int]]:
    """The tokens on the way to each segment's end, in order of the segments."""
    runs = [batch.inputs_T[segment.start : segment.end].tolist() for segment in batch.segments]
    return [[t for i in (*s.before, index) for t in runs[i]] for index, s in enumerate(batch.segments)]


def test_common_beginnings_stand_once() -> None:
    system, prompt = list(range(100, 120)), list(range(200, 210))
    rows = [row(*system, 1, 2, 3), row(*system, *prompt, 4, 5), row(*system, *prompt, 6, 7), row(8, 9, 10)]
    batch = lay_out(rows)
    assert len(batch.inputs_T) == 20 + 10 + 2 + 1 + 1 + 2
    assert [*system, *prompt] in paths(batch)
    assert [*system, 1, 2] in paths(batch) and [8, 9] in paths(batch)
    assert batch.n_tokens == sum(len(one.tokens) for one in rows)
    assert len(lay_out(rows, share=False).inputs_T) == batch.n_tokens - 4


@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=40), min_size=1, max_size=8), st.data())
@settings(deadline=None)
def test_every_target_stands_behind_its_own_row(rows: list[list[int]], data: st.DataObject) -> None:
    masks = [data.draw(st.lists(st.booleans(), min_size=len(r) - 1, max_size=len(r) - 1).filter(any)) for r in rows]
    examples = [
        Example(0, np.array(tokens, dtype=np.int32), np.array([False, *mask]).astype(np.uint8))
        for tokens, mask in zip(rows, masks, strict=True)
    ]
    batch = lay_out(examples)
    at = {}
    for segment, path in zip(batch.segments, paths(batch), strict=True):
        for place in range(segment.start, segment.end):
            at[place] = path[: segment.position + place - segment.start + 1]
            assert batch.positions_T[place] == len(at[place]) - 1
    expected = [
        (tokens[:end], tokens[end])
        for tokens, mask in zip(rows, masks, strict=True)
        for end, learnt in enumerate(mask, 1)
        if learnt
    ]
    found = [(at[p], t) for p, t in zip(batch.places_N.tolist(), batch.targets_N.tolist(), strict=True)]
    assert found == expected
    assert batch.counts == tuple(map(sum, masks))


# --- its parts


def test_norm_and_gate_equal_the_plain_ones_forward_and_back() -> None:
    norm = LlamaRMSNorm(48, eps=1e-5).requires_grad_(False)
    torch.nn.init.normal_(norm.weight)
    gate_up = torch.randn(7, 20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(swiglu, (gate_up,))
    left, right = gate_up.chunk(2, dim=-1)
    torch.testing.assert_close(swiglu(gate_up), torch.nn.functional.silu(left) * right)
    inputs = torch.randn(2, 5, 48, requires_grad=True)
    weights = torch.randn(2, 5, 48)
    expected, found = norm(inputs), rms_norm(inputs, norm.weight, 1e-5)
    torch.testing.assert_close(found, expected)
    [theirs], [ours] = (torch.autograd.grad((value * weights).sum(), inputs) for value in (expected, found))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("architecture", ["llama", "mistral-sliding"])
@pytest.mark.parametrize("limits", [{}, {"_CAUSAL_KEYS": 4}, {"_QUERY_BLOCK": 3}], ids=str)
def test_long_segments_behind_others_attend_alike(
    architecture: str, limits: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(save_tiny_model(tmp_path / "base", architecture), tmp_path)
    session = supervised(spec)
    move_away_from_base(session.parameters)
    rows = load_data(spec).train[:5]
    session.objective.reader.shares = False
    expected = gradient(session, rows)
    session.objective.reader.shares = True
    for name, value in limits.items():
        monkeypatch.setattr(attention, name, value)
    assert_equal(gradient(session, rows), expected)


# --- what it is taken for


@pytest.mark.parametrize("architecture", TRAINED)
def test_known_architectures_take_it_with_all_its_parts(architecture: str, tmp_path: Path) -> None:
    model = build_model(make_spec(save_tiny_model(tmp_path / "base", architecture), tmp_path))
    assert model.plain_because == ""
    replaced = replaced_in(model)
    norms = {name for name in replaced if name.endswith("norm")}
    assert replaced - norms >= {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert ("mlp" in replaced) == ("gemma" not in architecture)
    assert norms >= {"norm", "post_attention_layernorm"}


def replaced_in(model: TrainableModel) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name, module in model.module.named_modules() if "forward" in vars(module)}


@pytest.mark.parametrize("targets", [("q_proj", "v_proj", "down_proj"), ("k_proj", "gate_proj")])
def test_layers_without_an_adapter_take_part_as_they_are(
    targets: tuple[str, ...], tiny_base: Path, tmp_path: Path
) -> None:
    spec = make_spec(tiny_base, tmp_path, targets=targets)
    found, plain = supervised(spec), supervised(spec, fast=False)
    assert replaced_in(found.model) >= {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    for session in (found, plain):
        move_away_from_base(session.parameters)
    rows = load_data(spec).train[:5]
    assert_equal(gradient(found, rows), gradient(plain, rows))


def test_quantised_layers_are_joined_too(tiny_base: Path, tmp_path: Path) -> None:
    model = build_model(make_spec(tiny_base, tmp_path, quantization="nf4"))
    assert model.plain_because == ""
    assert replaced_in(model) >= {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "mlp"}


def test_bfloat16_is_close_to_float32(tiny_base: Path, tmp_path: Path) -> None:
    exact = supervised(make_spec(tiny_base, tmp_path))
    coarse = supervised(make_spec(tiny_base, tmp_path, dtype="bfloat16"))
    assert coarse.model.dtype == torch.bfloat16 and coarse.model.plain_because == ""
    rows = load_data(make_spec(tiny_base, tmp_path)).train[:5]
    assert coarse.evaluate(rows).loss == pytest.approx(exact.evaluate(rows).loss, rel=1e-2)


def test_with_dropout_nothing_is_shared_and_layers_stay(tiny_base: Path, tmp_path: Path) -> None:
    model = build_model(make_spec(tiny_base, tmp_path, dropout=0.5))
    assert model.plain_because == "" and not model.can_share
    assert "q_proj" not in replaced_in(model)


def nan_in_a_gradient(real: Any) -> Any:
    def broken(query: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        output: torch.Tensor = real(query, *rest, **named)
        if output.requires_grad:
            output.register_hook(lambda g: g * torch.nan)  # type: ignore[no-untyped-call]
        return output

    return broken


def refused(real: Any) -> Any:
    def broken(*_: Any, **__: Any) -> torch.Tensor:
        raise NotImplementedError

    return broken


@pytest.mark.parametrize(
    ("breakage", "reason"),
    [
        (lambda real: lambda query, *rest, **named: real(query * 1.01, *rest, **named), "results differ"),
        (nan_in_a_gradient, "results differ"),
        (refused, "another kind"),
    ],
)
def test_a_model_that_does_not_come_out_the_same_stays_on_the_plain_path(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breakage: Any, reason: str
) -> None:
    plain = supervised(make_spec(tiny_base, tmp_path), fast=False)
    monkeypatch.setattr(attention, "scaled_dot_product_attention", breakage(scaled_dot_product_attention))
    session = supervised(make_spec(tiny_base, tmp_path))
    assert reason in session.model.plain_because
    assert not replaced_in(session.model)
    for name, parameter in plain.parameters.items():
        assert torch.equal(session.parameters[name], parameter)
    rows = load_data(make_spec(tiny_base, tmp_path)).train[:5]
    assert session.evaluate(rows).loss == plain.evaluate(rows).loss


def test_a_wrong_adapter_product_is_seen(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = linears._adapter
    monkeypatch.setattr(linears, "_adapter", lambda layer, like: (*real(layer, like)[:2], 1.1 * real(layer, like)[2]))
    assert "results differ" in build_model(make_spec(tiny_base, tmp_path)).plain_because


def test_attention_that_would_be_computed_otherwise_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    state = torch.zeros(1, 2, 3, 4)
    segments = attention.Segments(lay_out([row(1, 2, 3, 4)]).segments)
    for asked in ({}, {"segments": segments, "dropout": 0.1}, {"segments": segments, "s_aux": torch.zeros(2)}):
        with pytest.raises(NotImplementedError):
            attention.attend(torch.nn.Module(), state, state, state, None, **asked)
