"""One layer's adapter weights, laid out so that a product takes few calls and reads no slot that is not in use.

vLLM keeps a pair of tensors per output slice (q, k and v are slices of one layer), each with every slot in it. Here the
slices of a slot lie together, so that one product makes the intermediate of all of them, and B is stored as it is
multiplied. vLLM's own tensors become views of these: what it writes into a slot is here at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Products = tuple[Tensor, tuple[Tensor, ...]]
"""A (in, slots * slices * rank), and for each slice B (slots * rank, out)."""


class SlotWeights:
    """The stacked weights of one layer, of which `products` gives those of neighbouring slots."""

    def __init__(self, lora_a: Sequence[Tensor], lora_b: Sequence[Tensor]) -> None:
        """Take over A (slots, 1, rank, in) and B (slots, 1, out, rank), one pair a slice, and make them views."""
        slots, _, rank, inputs = lora_a[0].shape
        self.rank, self.slices = rank, len(lora_a)
        self.widths = tuple(matrix.shape[2] for matrix in lora_b)
        self._owners = (lora_a, lora_b)
        self._cached: dict[tuple[int, int], Products] = {}
        with torch.inference_mode(False):
            self._a = torch.cat([matrix[:, 0] for matrix in lora_a], dim=1)  # (slots, slices * rank, in)
            self._b = [matrix[:, 0].transpose(1, 2).contiguous() for matrix in lora_b]  # (slots, rank, out)
            by_slice = self._a.view(slots, self.slices, rank, inputs)
            for place, matrix in enumerate(lora_a):
                matrix.data = by_slice.narrow(1, place, 1)
            for matrix, stored in zip(lora_b, self._b, strict=True):
                matrix.data = stored.transpose(1, 2).unsqueeze(1)

    def products(self, first: int, last: int) -> Products:
        """Return the weights of slots `first` … `last` - 1; they are views."""
        found = self._cached.get((first, last))
        if found is None:
            a = self._a[first:last].flatten(0, 1).t()
            found = self._cached[(first, last)] = (a, tuple(b[first:last].flatten(0, 1) for b in self._b))
        return found
