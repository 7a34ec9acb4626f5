"""What a base model is made of, from its files' headers alone: no torch, and no gigabyte is read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class BaseShape:
    """Tensors by name with their shapes; the output layer counts as one of them only where it has its own."""

    tensors: dict[str, tuple[int, ...]]
    vocabulary: int

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensors.values())

    def linears(self, *names: str) -> list[tuple[int, int]]:
        """List (outputs, inputs) of the layers' linear weights with these names, of all if there are none."""
        ends = tuple(f"{name}.weight" for name in names)
        return [
            (shape[0], shape[1])
            for name, shape in self.tensors.items()
            if len(shape) == 2 and ".layers." in name and (not names or name.endswith(ends))
        ]


def read_base_shape(folder: Path) -> BaseShape:
    """Read a base's shape. Raises OSError, or ValueError for files that are no model."""
    tensors = {name: shape for path in sorted(folder.glob("*.safetensors")) for name, shape in _header(path)}
    embeddings = [shape for name, shape in tensors.items() if name.endswith("embed_tokens.weight")]
    if not embeddings:
        raise ValueError(f"{folder.name} has no embeddings of a known name")
    vocabulary = embeddings[0][0]
    return BaseShape(tensors, vocabulary)


def _header(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Read names and shapes; see the format's description at huggingface/safetensors."""
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
    for name, tensor in header.items():
        if name != "__metadata__":
            yield name, tuple(tensor["shape"])
