"""LoRA products on the CPU, grouped by adapter instead of gathered per token.

vLLM's own CPU wrapper copies whole A and B matrices for every token, and sends rows without an adapter (slot -1)
through the last slot, so that a base request batched beside an adapter comes out wrong. Here a batch's rows are grouped
once, for all layers. A few rows go through compiled code (compiled_products), more through torch: rows that lie
together (one adapter, long prompts) in place, others gathered by slot and added back. Rows without an adapter are never
read or written.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.logger import init_logger
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from services.inference.engine.slot_weights import SlotWeights

logger = init_logger(__name__)

try:
    from services.inference.engine.compiled_products import add_products
except Exception:  # a full disk, a damaged cache of compiled code: slower, not wrong
    logger.exception("the products of few rows are not compiled; torch computes them, which takes longer")
    add_products = None

FEW_ROWS, FEW_MIXED_ROWS = 32, 128
"""Up to here compiled code is faster than torch's products, for one adapter and for several: docs/performance.md, "What
an adapter costs"."""

Span = tuple[int, int, int]
"""(slot, first row, row after the last)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which rows belong to which slot. Spans number the batch's rows, or positions in `rows` where that is given."""

    spans: tuple[Span, ...] = ()
    rows: Tensor | None = None


@dataclass(frozen=True, slots=True)
class FewRows:
    """The same for compiled code: `rows` by slot; group g has `slots[g]`, from `bounds[g]` up to `bounds[g + 1]`."""

    rows: NDArray[np.int64]
    bounds: NDArray[np.int64]
    slots: NDArray[np.int64]
    size: int
    """Rows of the batch. Compiled code goes by addresses and checks nothing, so it is called for this size only."""


def plan_rows(slots: list[int]) -> Plan:
    """Group a batch: `slots[i]` is row i's adapter slot, negative for none.

    Rows that already are contiguous per slot are used in place. Others are permuted once per layer, so that the number
    of products depends on the adapters, not on how they interleave.
    """
    runs = _runs(slots)
    if len(runs) <= max(2, len({slot for slot, _, _ in runs})):
        return Plan(tuple(runs))
    order = _by_slot(slots)
    return Plan(tuple(_runs([slots[row] for row in order])), torch.tensor(order, dtype=torch.long))


def plan_few(slots: list[int]) -> FewRows:
    """Group a small batch."""
    order = _by_slot(slots)
    spans = _runs([slots[row] for row in order])
    return FewRows(
        rows=np.array(order, dtype=np.int64),
        bounds=np.array([0, *(end for _, _, end in spans)], dtype=np.int64),
        slots=np.array([slot for slot, _, _ in spans], dtype=np.int64),
        size=len(slots),
    )


def _by_slot(slots: list[int]) -> list[int]:
    return sorted((row for row, slot in enumerate(slots) if slot >= 0), key=slots.__getitem__)


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
    _few: FewRows | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._layers: dict[int, SlotWeights] = {}

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int, **kwargs: Any
    ) -> None:
        super().update_metadata(mapping, lora_index_to_id, max_loras, vocab_size, **kwargs)
        self.plan(self.token_lora_indices.tolist())

    def plan(self, slots: list[int]) -> None:
        """Prepare for a batch: `slots[i]` is row i's adapter slot, negative for none."""
        self._plan = plan_rows(slots)
        most = FEW_MIXED_ROWS if len(self._plan.spans) > 1 else FEW_ROWS
        self._few = plan_few(slots) if add_products is not None and len(slots) <= most else None

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
        if not self._plan.spans:
            return
        weights = self._layers.get(id(lora_a_stacked))
        if weights is None:  # it holds the tuples, so that no other can get their id
            weights = self._layers[id(lora_a_stacked)] = SlotWeights(lora_a_stacked, lora_b_stacked)
        few = self._few
        if few is not None and few.size == x.shape[0] == y.shape[0] and _fits(x, y, weights):
            _add_few(y, x, weights, few, scale)
        else:
            _add_many(y, x, weights, self._plan, scale)


def _fits(x: Tensor, y: Tensor, weights: SlotWeights) -> bool:
    return (
        weights.is_float32
        and x.dtype == y.dtype == torch.float32
        and x.stride(1) == y.stride(1) == 1
        and x.shape[1] == weights.a.shape[2]
        and y.shape[1] == weights.width
    )


def _add_few(y: Tensor, x: Tensor, weights: SlotWeights, few: FewRows, scale: float) -> None:
    add_products(
        y.data_ptr(), y.stride(0) * 4, x.data_ptr(), x.stride(0) * 4, x.shape[1],
        weights.a_address, weights.b_addresses, weights.width_array, weights.rank,
        few.rows, few.bounds, few.slots, scale,
    )  # fmt: skip


def _add_many(y: Tensor, x: Tensor, weights: SlotWeights, plan: Plan, scale: float) -> None:
    if plan.rows is None:
        for slot, start, end in plan.spans:
            _add_slot(y[start:end], x[start:end], weights, slot, scale)
        return
    grouped = x.index_select(0, plan.rows)
    delta = y.new_zeros((grouped.shape[0], y.shape[1]))
    for slot, start, end in plan.spans:
        _add_slot(delta[start:end], grouped[start:end], weights, slot, scale)
    y.index_add_(0, plan.rows, delta)


def _add_slot(y: Tensor, x: Tensor, weights: SlotWeights, slot: int, scale: float) -> None:
    hidden = torch.mm(x, weights.a[slot].t())
    start = 0
    for place, (width, matrix) in enumerate(zip(weights.widths, weights.b, strict=True)):
        inner = hidden.narrow(1, place * weights.rank, weights.rank)
        y.narrow(1, start, width).addmm_(inner, matrix[slot], alpha=scale)
        start += width
