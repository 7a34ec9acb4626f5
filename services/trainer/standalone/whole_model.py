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

from services.trainer.standalone.weights import INDEX, MergedWeights, cast
from shared.safetensors_header import TensorInfo

# Of the base's other files these belong to a model, and none of them is a program.
_COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "additional_chat_templates/*.jinja", "LICENSE*", "NOTICE*")
_WRITTEN = frozenset({"config.json", INDEX})
_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def size_bytes(weights: MergedWeights, dtype: torch.dtype | None) -> int:
    """Return the bytes that the weights will take."""
    return sum(_placed(tensors, dtype)[1] for tensors in weights.files.values())


def write_model(weights: MergedWeights, base: Path, folder: Path, dtype: torch.dtype | None) -> None:
    """Write the model into `folder`; `dtype` None keeps each tensor's type. Raises ExportRefused, OSError."""
    for file, tensors in weights.files.items():
        placed, _ = _placed(tensors, dtype)
        with (folder / file).open("wb") as handle:
            _write(handle, placed, (cast(name, t, dtype, tensors[name]) for name, t in weights.read(file)))
    if len(weights.files) > 1:
        (folder / INDEX).write_bytes(_pretty(_index(weights, dtype)))
    (folder / "config.json").write_bytes(_pretty(_config(weights.config, dtype)))
    for path in sorted({path for pattern in _COPIED for path in base.glob(pattern)}):
        place = folder / path.relative_to(base)
        if path.is_file() and path.name not in _WRITTEN and not place.exists():
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, place)


def _write(handle: BinaryIO, placed: dict[str, TensorInfo], tensors: Iterator[Tensor]) -> None:
    header = msgspec.json.encode({"__metadata__": {"format": "pt"}, **placed})
    header += b" " * (-len(header) % 8)
    handle.write(len(header).to_bytes(8, "little") + header)
    handle.writelines(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()) for tensor in tensors)


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


def _index(weights: MergedWeights, dtype: torch.dtype | None) -> dict[str, Any]:
    files = {name: file for file, tensors in weights.files.items() for name in tensors}
    return {"metadata": {"total_size": size_bytes(weights, dtype)}, "weight_map": dict(sorted(files.items()))}


def _config(base: dict[str, Any], dtype: torch.dtype | None) -> dict[str, Any]:
    """The base's configuration with the new type, under the name that transformers has for it now, and no path."""
    config = {key: value for key, value in base.items() if key != "_model_name_or_path"}
    if dtype is None:
        return config
    config.pop("torch_dtype", None)
    return config | {"dtype": str(dtype).removeprefix("torch.")}


def _pretty(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
