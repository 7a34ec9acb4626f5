"""Examples -> batches. Axes: B rows, T tokens, N supervised tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.trainer.data.chat import Example

WINDOW_BATCHES = 32
"""Rows are sorted by length inside windows of so many batches: little padding, and order stays random beyond that."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs and the places whose next token is learnt; places of one example follow each other.

    `rows_N` and `columns_N` index inputs_BT; targets_N is what follows there. No attention mask: attention is causal,
    so padding on the right never reaches a real token. Packed examples share a row, and positions_BT starts anew at 0
    where the next one begins.
    """

    inputs_BT: Tensor
    rows_N: Tensor
    columns_N: Tensor
    targets_N: Tensor
    n_tokens: int
    """Real tokens, without padding, the last one of each example included."""
    counts: tuple[int, ...]
    """How many of the N places each example has."""
    positions_BT: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.inputs_BT.to(device),
            self.rows_N.to(device),
            self.columns_N.to(device),
            self.targets_N.to(device),
            self.n_tokens,
            self.counts,
            None if self.positions_BT is None else self.positions_BT.to(device),
        )


def collate(examples: Sequence[Example], *, pad_id: int = 0) -> Batch:
    """Pad examples into one batch. The last token of a row is only a target, so T is the longest row less one."""
    width = max(len(example.tokens) for example in examples) - 1
    inputs_BT = torch.full((len(examples), width), pad_id, dtype=torch.int64)
    rows, columns, targets = [], [], []
    for row, example in enumerate(examples):
        tokens = torch.tensor(example.tokens, dtype=torch.int64)
        inputs_BT[row, : len(tokens) - 1] = tokens[:-1]
        places = _places(example)
        rows.append(torch.full_like(places, row))
        columns.append(places)
        targets.append(tokens[places + 1])
    n_tokens = sum(len(example.tokens) for example in examples)
    counts = tuple(len(places) for places in columns)
    return Batch(inputs_BT, torch.cat(rows), torch.cat(columns), torch.cat(targets), n_tokens, counts)


def collate_packed(examples: Sequence[Example]) -> Batch:
    """Lay examples end to end in one row, each with positions of its own; B is 1."""
    inputs, positions, columns, targets = [], [], [], []
    start = 0
    for example in examples:
        tokens = torch.tensor(example.tokens, dtype=torch.int64)
        places = _places(example)
        inputs.append(tokens[:-1])
        positions.append(torch.arange(len(tokens) - 1))
        columns.append(places + start)
        targets.append(tokens[places + 1])
        start += len(tokens) - 1
    columns_N = torch.cat(columns)
    return Batch(
        torch.cat(inputs)[None],
        torch.zeros_like(columns_N),
        columns_N,
        torch.cat(targets),
        n_tokens=sum(len(example.tokens) for example in examples),
        counts=tuple(len(places) for places in columns),
        positions_BT=torch.cat(positions)[None],
    )


def _places(example: Example) -> Tensor:
    """Find where the next token is a target."""
    return torch.frombuffer(bytearray(example.supervised[1:]), dtype=torch.uint8).nonzero()[:, 0]


def epoch_batches(lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Split row indices into one epoch's optimiser steps: shuffled by (seed, epoch), rows of similar length together.

    Each row comes once; all batches but one have `batch_size` rows. The same arguments give the same batches on every
    machine.
    """
    order = random.Random(f"{seed}:{epoch}")
    indices = list(range(len(lengths)))
    order.shuffle(indices)
    window = batch_size * WINDOW_BATCHES
    batches: list[list[int]] = []
    for start in range(0, len(indices), window):
        by_length = sorted(indices[start : start + window], key=lambda index: lengths[index])
        batches += [by_length[at : at + batch_size] for at in range(0, len(by_length), batch_size)]
    order.shuffle(batches)
    return batches
