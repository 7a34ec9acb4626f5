"""What a job is expected to need: exact where it can be, in proportion where the C library has a say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from msgspec.structs import replace

from services.trainer.data.chat import Example
from services.trainer.data.cutting import FLAT_TOKENS
from services.trainer.data.heaviest import Reading, heaviest_piece
from services.trainer.data.segments import lay_out
from services.trainer.data.table import Fitting, TokenTable, examples
from services.trainer.memory.estimate import (
    Piece,
    Plan,
    adapter_parameters,
    dropout_numbers,
    estimate,
    fast_numbers,
    plain_numbers,
    weight_bytes,
)
from services.trainer.memory.shape import read_base_shape
from services.trainer.protocol import LORA_TARGETS
from tests.unit.trainer.test_trainer_loop import supervised
from tests.unit.trainer.tiny import make_spec

PLAN = Plan(rank=4, targets=LORA_TARGETS)


def table_of(rows: Sequence[Sequence[int]], *, sides: int = 1) -> TokenTable:
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ids = np.concatenate([np.asarray(row, dtype=np.int32) for row in rows])
    mask = np.ones(len(ids), dtype=np.uint8)
    lines = np.arange(1, len(rows) // sides + 1)
    return TokenTable(ids, mask, lengths.cumsum(), lengths, lines, np.ones_like(lines, dtype=np.uint8))


def test_weights_and_adapter_are_counted_as_the_model_has_them(tiny_base: Path, tmp_path: Path) -> None:
    shape = read_base_shape(tiny_base)
    for targets in (LORA_TARGETS, ("q_proj", "down_proj")):
        model = supervised(make_spec(tiny_base, tmp_path, targets=targets)).model
        trainable = sum(parameter.numel() for parameter in model.trainable().values())
        assert adapter_parameters(shape, replace(PLAN, targets=targets)) == trainable
        whole = sum(parameter.numel() for parameter in model.module.parameters())
        assert weight_bytes(shape, PLAN) == 4 * (whole - trainable)


def kept_numbers(base: Path, folder: Path, tokens: int, **options: object) -> int:
    """Count the numbers that autograd keeps for rows of so many tokens together, the parameters left out."""
    session = supervised(make_spec(base, folder, **options))
    known = {parameter.untyped_storage().data_ptr() for parameter in session.model.module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known and tensor.is_floating_point():
            kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    ids = np.random.default_rng(0).integers(0, 300, tokens).astype(np.int32)
    mask = np.zeros(tokens, dtype=np.uint8)
    mask[-2:] = 1
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        session.forward_backward([Example(1, ids, mask)])
    return sum(kept.values())


def test_what_layers_keep_of_a_token_is_counted_as_autograd_keeps_it(tiny_base: Path, tmp_path: Path) -> None:
    shape = read_base_shape(tiny_base)
    few, many = (kept_numbers(tiny_base, tmp_path / "fast", tokens) for tokens in (65, 193))
    assert abs((many - few) / 128 / fast_numbers(shape, PLAN) - 1) < 0.1
    few, many = (kept_numbers(tiny_base, tmp_path / "plain", tokens, neftune_noise_alpha=5.0) for tokens in (65, 193))
    assert abs((many - few) / 128 / plain_numbers(shape, PLAN) - 1) < 0.15


def test_dropout_is_counted_as_autograd_keeps_it(tiny_base: Path, tmp_path: Path) -> None:
    few, many = (kept_numbers(tiny_base, tmp_path, tokens, dropout=0.1) for tokens in (65, 193))
    assert abs((many - few) / 128 / dropout_numbers(read_base_shape(tiny_base), PLAN) - 1) < 0.15


def test_estimate_grows_with_what_a_job_asks_for(tiny_base: Path) -> None:
    shape, piece = read_base_shape(tiny_base), Piece(tokens=500, padded_tokens=900)
    usual = estimate(shape, PLAN, piece)
    assert usual.total == sum(usual.parts().values())
    assert estimate(shape, PLAN, replace(piece, tokens=1000)).activations == 2 * usual.activations
    assert estimate(shape, replace(PLAN, rank=8), piece).adapter == 2 * usual.adapter
    assert estimate(shape, replace(PLAN, plain=True), piece).activations > 1.5 * usual.activations
    assert estimate(shape, replace(PLAN, number_bytes=2), piece).weights == usual.weights // 2
    assert estimate(shape, replace(PLAN, quantization="nf4"), piece).weights < usual.weights
    assert estimate(shape, replace(PLAN, on_gpu=True), piece).runtime == 0


def test_heaviest_piece_counts_tokens_as_the_fast_path_lays_them_out() -> None:
    prompt = list(range(40))
    rows = [prompt + [100 + n] * (10 + n) for n in range(12)]
    table, fitting = table_of(rows), Fitting({}, [], [])
    piece = heaviest_piece(table, fitting, Reading(batch_size=4))
    laid_out = lay_out(examples(table, fitting)[-4:])
    assert piece.tokens == len(laid_out.inputs_T) + 4, "the last token of each row is only a target"
    assert piece.padded_tokens == 4 * len(rows[-1])
    apart = heaviest_piece(table, fitting, Reading(batch_size=4, shares=False))
    assert apart.tokens == sum(map(len, rows[-4:]))
    assert heaviest_piece(table, fitting, Reading(batch_size=4, most_rows=2, shares=False)).tokens == 61 + 60
    pairs = heaviest_piece(table_of(rows, sides=2), fitting, Reading(batch_size=1))
    assert pairs.tokens == 40 + 20 + 21


def test_heaviest_piece_has_no_more_than_a_piece_may_have_and_heeds_dropped_and_cut_rows() -> None:
    rows = [[n] * 300 for n in range(20)]
    table = table_of([*rows, [50] * 3000])
    reading = Reading(batch_size=8, shares=False)
    assert heaviest_piece(table, Fitting({}, [], []), reading).tokens == 3000
    assert heaviest_piece(table, Fitting({20: -1}, [21], []), reading).tokens == FLAT_TOKENS // 300 * 300
    assert heaviest_piece(table, Fitting({20: 100}, [], [21]), reading).tokens == 2900
