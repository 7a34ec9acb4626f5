"""LoRA products on the CPU, grouped by adapter instead of gathered per token.

vLLM's own CPU wrapper copies whole A and B matrices for every token, and sends rows without an adapter (slot -1)
through the last slot, so that a base request batched beside an adapter comes out wrong. Here a batch is planned once,
for all layers, in one of three ways:

- runs: rows that lie together use their slot's weights in place (one adapter, long prompts);
- masked: the few rows of a mixed batch go through the weights of all its slots at once, and what a row gets from a slot
  that is not its own is set to zero before it is used. Half the calls, and decoding waits for calls, not arithmetic;
- sorted: the rows of a large mixed batch are gathered by slot, and added back.

Rows without an adapter keep their values in all three.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from services.inference.engine.slot_weights import SlotWeights

_MOST_MASKED = 256
"""Rows times slots up to which a mixed batch is masked: its arithmetic is that of `slots` times the rows."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `start` … `end` - 1 of a batch, and the slots `first` … `last` - 1 that they may use."""

    first: int
    last: int
    start: int
    end: int
    own: Tensor | None = None
    """Which of the slots each row uses, bool (rows, 1, slots, 1); None when there is one slot, and all rows use it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do for a batch. Parts number its rows, or positions in `rows` where that is given."""

    parts: tuple[Part, ...] = ()
    rows: Tensor | None = None


def plan_rows(slots: list[int]) -> Plan:
    """Plan a batch: `slots[i]` is row i's adapter slot, negative for none."""
    runs = _runs(slots)
    if len(runs) <= 1:
        return Plan(tuple(runs))
    used = sorted({slot for slot in slots if slot >= 0})
    start, end = runs[0].start, runs[-1].end
    if (end - start) * len(used) <= _MOST_MASKED:
        return Plan(tuple(_masked(slots, first, last, start, end) for first, last in _neighbours(used)))
    if len(runs) == len(used):
        return Plan(tuple(runs))
    order = sorted((row for row, slot in enumerate(slots) if slot >= 0), key=slots.__getitem__)
    return Plan(tuple(_runs([slots[row] for row in order])), torch.tensor(order, dtype=torch.long))


def _runs(slots: list[int]) -> list[Part]:
    runs: list[Part] = []
    start = 0
    for slot, members in groupby(slots):
        end = start + sum(1 for _ in members)
        if slot >= 0:
            runs.append(Part(slot, slot + 1, start, end))
        start = end
    return runs


def _masked(slots: list[int], first: int, last: int, start: int, end: int) -> Part:
    given = torch.tensor(slots[start:end]).view(-1, 1, 1, 1)
    return Part(first, last, start, end, given == torch.arange(first, last).view(1, 1, -1, 1))


def _neighbours(used: list[int]) -> list[tuple[int, int]]:
    """Group ascending slots into ranges without a gap: an unused slot between two would be read for nothing."""
    groups = groupby(enumerate(used), key=lambda pair: pair[1] - pair[0])
    ranges = [[slot for _, slot in members] for _, members in groups]
    return [(members[0], members[-1] + 1) for members in ranges]


class GroupedPunicaWrapperCPU(PunicaWrapperCPU):  # type: ignore[misc]  # vLLM is not typed here
    """Linear layers only: the worker refuses to start when another kind of layer is wrapped."""

    _plan = Plan()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._layers: dict[int, SlotWeights] = {}

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int, **kwargs: Any
    ) -> None:
        super().update_metadata(mapping, lora_index_to_id, max_loras, vocab_size, **kwargs)
        self._plan = plan_rows(self.token_lora_indices.tolist())

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add `scale * (x A^T) B^T` of each row's adapter to `y` (rows, sum of output_slices), in place.

        A is (slots, 1, rank, in) and B (slots, 1, out, rank), one pair per output slice, the same tuples of tensors at
        every call for a layer. `buffer` is not used: the intermediate is small and has the weights' dtype.
        """
        plan = self._plan
        if not plan.parts:
            return
        weights = self._layers.get(id(lora_a_stacked))
        if weights is None:  # it holds the tuples, so that no other can get their id
            weights = self._layers[id(lora_a_stacked)] = SlotWeights(lora_a_stacked, lora_b_stacked)
        if plan.rows is None:
            for part in plan.parts:
                _add_products(y[part.start : part.end], x[part.start : part.end], weights, part, scale)
            return
        grouped = x.index_select(0, plan.rows)
        delta = y.new_zeros((grouped.shape[0], y.shape[1]))
        for part in plan.parts:
            _add_products(delta[part.start : part.end], grouped[part.start : part.end], weights, part, scale)
        y.index_add_(0, plan.rows, delta)


def _add_products(y: Tensor, x: Tensor, weights: SlotWeights, part: Part, scale: float) -> None:
    lora_a, lora_b = weights.products(part.first, part.last)
    hidden = torch.mm(x, lora_a)
    if part.own is not None:
        hidden = _own(hidden, part.own, weights)
    if len(lora_b) == 1:
        y.addmm_(hidden, lora_b[0], alpha=scale)
        return
    start = at = 0
    for matrix in lora_b:
        rank, width = matrix.shape
        y.narrow(1, start, width).addmm_(hidden.narrow(1, at, rank), matrix, alpha=scale)
        start, at = start + width, at + rank


def _own(hidden: Tensor, own: Tensor, weights: SlotWeights) -> Tensor:
    """Keep what each row's own slot made, (rows, slices * slots * rank), and set the rest to zero.

    Chosen and not multiplied: a slot whose products overflow would turn other rows' zeros into NaN.
    """
    by_slice = hidden.view(hidden.shape[0], -1, weights.slices, weights.rank).transpose(1, 2)
    return torch.where(own, by_slice, 0.0).flatten(1)
