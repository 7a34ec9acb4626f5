"""One layer's adapter weights, laid out as they are multiplied.

vLLM keeps a pair of tensors per output slice (q, k and v are slices of one layer), each with every slot in it. Here the
slices of a slot lie together, so that one product makes the intermediate of all of them, and B is stored as it is
multiplied. vLLM's own tensors become views of these: what it writes into a slot is here at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class SlotWeights:
    """The stacked weights of one layer: A (slots, slices * rank, in), and for each slice B (slots, rank, out)."""

    def __init__(self, lora_a: Sequence[Tensor], lora_b: Sequence[Tensor]) -> None:
        """Take over A (slots, 1, rank, in) and B (slots, 1, out, rank), one pair a slice, and make them views."""
        slots, _, self.rank, inputs = lora_a[0].shape
        self.widths = tuple(matrix.shape[2] for matrix in lora_b)
        self.width = sum(self.widths)
        self._owners = (lora_a, lora_b)
        with torch.inference_mode(False):
            self.a = torch.cat([matrix[:, 0] for matrix in lora_a], dim=1)
            self.b = [matrix[:, 0].transpose(1, 2).contiguous() for matrix in lora_b]
            by_slice = self.a.view(slots, len(lora_a), self.rank, inputs)
            for place, matrix in enumerate(lora_a):
                matrix.data = by_slice.narrow(1, place, 1)
            for matrix, stored in zip(lora_b, self.b, strict=True):
                matrix.data = stored.transpose(1, 2).unsqueeze(1)
        self.is_float32 = self.a.dtype == torch.float32
        self.a_address = self.a.data_ptr()
        self.b_addresses = np.array([matrix.data_ptr() for matrix in self.b], dtype=np.int64)
        self.width_array = np.array(self.widths, dtype=np.int64)
