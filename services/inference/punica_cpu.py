"""LoRA products on the CPU, grouped by adapter instead of gathered per token.

vLLM's own CPU wrapper copies whole A and B matrices for every token, and sends rows without an adapter (slot -1)
through the last slot, so that a base request batched beside an adapter comes out wrong. Here rows are grouped once per
batch; each group is two matrix products per slice, and rows without an adapter are never read or written.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Span = tuple[int, int, int]
"""(slot, first row, row after the last)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which rows belong to which slot. Spans number the batch's rows, or positions in `rows` where that is given."""

    spans: tuple[Span, ...] = ()
    rows: Tensor | None = None


def plan_rows(slots: list[int]) -> Plan:
    """Group a batch: `slots[i]` is row i's adapter slot, negative for none.

    Batches that already are contiguous per slot (one adapter, long prompts) are used in place. Finely mixed ones are
    permuted once per layer, so that the number of products depends on the adapters, not on how they interleave.
    """
    runs = _runs(slots)
    if len(runs) <= max(2, len({slot for slot, _, _ in runs})):
        return Plan(tuple(runs))
    order = sorted((row for row, slot in enumerate(slots) if slot >= 0), key=slots.__getitem__)
    return Plan(tuple(_runs([slots[row] for row in order])), torch.tensor(order, dtype=torch.long))


def _runs(slots: list[int]) -> list[Span]:
    runs: list[Span] = []
    start = 0
    for slot, members in groupby(slots):
        end = start + sum(1 for _ in members)
        if slot >= 0:
            runs.append((slot, start, end))
        start = end
    return runs


class GroupedPunicaWrapperCPU(PunicaWrapperCPU):  # type: ignore[misc]  # vLLM is not typed here
    """Linear layers only: the worker refuses to start when another kind of layer is wrapped."""

    _plan = Plan()

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

        A is (slots, 1, rank, in) and B (slots, 1, out, rank), one pair per output slice. `buffer` is not used: the
        intermediate is small and has the weights' dtype.
        """
        plan = self._plan
        if not plan.spans:
            return
        weights = list(zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True))
        if plan.rows is None:
            for slot, start, end in plan.spans:
                _add_products(y[start:end], x[start:end], weights, slot, scale)
            return
        grouped = x.index_select(0, plan.rows)
        delta = y.new_zeros((grouped.shape[0], y.shape[1]))
        for slot, start, end in plan.spans:
            _add_products(delta[start:end], grouped[start:end], weights, slot, scale)
        y.index_add_(0, plan.rows, delta)


def _add_products(y: Tensor, x: Tensor, weights: list[tuple[Tensor, Tensor, int]], slot: int, scale: float) -> None:
    offset = 0
    for lora_a, lora_b, width in weights:
        hidden = x @ lora_a[slot, 0].t()
        y[:, offset : offset + width].addmm_(hidden, lora_b[slot, 0].t(), alpha=scale)
        offset += width
