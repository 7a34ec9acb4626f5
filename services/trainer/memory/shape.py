"""What a base model is made of, from its files' headers alone: no torch, and no gigabyte is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from services.trainer.base.weights import weight_files
from shared.safetensors_header import read_header


@dataclass(frozen=True, slots=True)
class BaseShape:
    """Tensors by name with their shapes; the output layer counts as one of them only where it has its own."""

    tensors: dict[str, tuple[int, ...]]
    vocabulary: int

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensors.values())

    @property
    def layer_parameters(self) -> int:
        """Those of the layers alone, without embeddings, output layer and last norm."""
        return sum(math.prod(shape) for name, shape in self.tensors.items() if ".layers." in name)

    def linears(self, *names: str) -> list[tuple[int, int]]:
        """List (outputs, inputs) of the layers' linear weights with these names, of all if there are none."""
        ends = tuple(f"{name}.weight" for name in names)
        return [
            (shape[0], shape[1])
            for name, shape in self.tensors.items()
            if len(shape) == 2 and ".layers." in name and (not names or name.endswith(ends))
        ]


def read_base_shape(folder: Path) -> BaseShape:
    """Read a base's shape. Raises ValueError or AdapterRejected for files that are no model."""
    tensors = {name: tuple(info.shape) for path in weight_files(folder) for name, info in read_header(path).items()}
    embeddings = [shape for name, shape in tensors.items() if name.endswith("embed_tokens.weight")]
    if not embeddings:
        raise ValueError(f"{folder.name} has no embeddings of a known name")
    return BaseShape(tensors, embeddings[0][0])
