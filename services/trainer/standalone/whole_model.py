"""A whole model as a folder that transformers and vLLM load: safetensors, configuration, tokenizer.

The files of weights are those of the base, tensor for tensor (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import torch
from torch import Tensor

from services.trainer.base.weights import INDEX
from services.trainer.standalone.weights import BaseWeights, cast
from shared.safetensors_header import TensorInfo

# Of the base's other files these belong to a model, and none of them is a program.
_COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "additional_chat_templates/*.jinja", "LICENSE*", "NOTICE*")
_WRITTEN = frozenset({"config.json", INDEX})
_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class WholeModel:
    """A folder that can be written; `dtype` None keeps each tensor's type."""

    def __init__(self, weights: BaseWeights, base: Path, dtype: str | None) -> None:
        self._weights = weights
        self._base = base
        self._dtype: torch.dtype | None = getattr(torch, dtype) if dtype else None

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(_placed(tensors, self._dtype)[1] for tensors in self._weights.files.values())

    def write(self, folder: Path) -> None:
        """Write the model into `folder`. Raises ExportRefused for a value that the type cannot hold, OSError."""
        for file in self._weights.files:
            self._write_weights(file, folder)
        if len(self._weights.files) > 1:
            (folder / INDEX).write_bytes(_pretty(self._index()))
        (folder / "config.json").write_bytes(_pretty(_config(self._weights.config, self._dtype)))
        for path in sorted({path for pattern in _COPIED for path in self._base.glob(pattern)}):
            place = folder / path.relative_to(self._base)
            if path.is_file() and path.name not in _WRITTEN:
                place.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, place)

    def _write_weights(self, file: str, folder: Path) -> None:
        tensors = self._weights.files[file]
        placed, _ = _placed(tensors, self._dtype)
        merged = self._weights.read(file)
        with (folder / file).open("wb") as handle:
            _write(handle, placed, (cast(name, tensor, self._dtype, tensors[name]) for name, tensor in merged))

    def _index(self) -> dict[str, Any]:
        files = {name: file for file, tensors in self._weights.files.items() for name in tensors}
        return {"metadata": {"total_size": self.size_bytes}, "weight_map": dict(sorted(files.items()))}


def _write(handle: BinaryIO, placed: dict[str, TensorInfo], tensors: Iterator[Tensor]) -> None:
    header = msgspec.json.encode({"__metadata__": {"format": "pt"}, **placed})
    header += b" " * (-len(header) % 8)
    handle.write(len(header).to_bytes(8, "little") + header)
    # Not with numpy's tofile, which does not tell why it could not write.
    handle.writelines(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data for tensor in tensors)


def _placed(tensors: dict[str, TensorInfo], dtype: torch.dtype | None) -> tuple[dict[str, TensorInfo], int]:
    """Return the tensors with their new types and places, and the bytes of all."""
    placed: dict[str, TensorInfo] = {}
    offset = 0
    for name, info in tensors.items():
        begin, end = info.data_offsets
        kind, size = info.dtype, end - begin
        if dtype is not None and kind in _NAMES.values():
            kind, size = _NAMES[dtype], _count(info.shape) * dtype.itemsize
        placed[name] = TensorInfo(kind, info.shape, (offset, offset + size))
        offset += size
    return placed, offset


def _count(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _config(base: dict[str, Any], dtype: torch.dtype | None) -> dict[str, Any]:
    """The base's configuration with the new type, under the name that transformers has for it now, and no path."""
    config = {key: value for key, value in base.items() if key != "_model_name_or_path"}
    if dtype is None:
        return config
    config.pop("torch_dtype", None)
    return config | {"dtype": str(dtype).removeprefix("torch.")}


def _pretty(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
