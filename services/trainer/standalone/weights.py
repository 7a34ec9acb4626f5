"""A base's tensors as its files hold them, or with an adapter merged in: W + s·B·A, one in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import safe_open
from torch import Tensor

from services.trainer.base.weights import weight_files
from services.trainer.standalone import ExportRefused
from services.trainer.standalone.adapter import Adapter
from shared.errors import AdapterRejected
from shared.safetensors_header import TensorInfo, read_header

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_FLOAT16_MAX = torch.finfo(torch.float16).max
_OUTPUT_LAYER = "lm_head"


class BaseWeights:
    """What a whole model consists of: files, and in them its tensors in their order."""

    def __init__(self, base: Path) -> None:
        """Look at the files. Raises ExportRefused where they are not what is written again."""
        self._base = base
        self.config = read_config(base)
        self.files: dict[str, dict[str, TensorInfo]] = {name: _header(base / name) for name in _file_names(base)}
        if self.config.get("quantization_config"):
            raise ExportRefused("the base is stored quantised; it is not written again, nor an adapter merged into it")
        for name, info in self.tensors.items():
            if info.dtype.startswith(("F", "BF")) and info.dtype not in _FLOATS:
                raise ExportRefused(f"the base's {name} has elements of type {info.dtype}, which are not written")

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor as the base stores it, by name."""
        return {name: info for tensors in self.files.values() for name, info in tensors.items()}

    @property
    def ties_output(self) -> bool:
        """Whether the output layer is the embedding, whatever the files hold."""
        return bool(self.config.get("tie_word_embeddings", False))

    def read(self, file: str) -> Iterator[tuple[str, Tensor]]:
        """Yield a file's tensors in its order."""
        with safe_open(self._base / file, framework="pt") as handle:
            for name in self.files[file]:
                yield name, handle.get_tensor(name)


class MergedWeights(BaseWeights):
    """The same with an adapter in them, in float32 where it adds something."""

    def __init__(self, base: Path, adapter: Adapter) -> None:
        """Check that every part of the adapter has its weight. Raises ExportRefused naming what does not fit."""
        super().__init__(base)
        self._adapter = adapter
        self._check()

    def read(self, file: str) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in super().read(file):
            module = name.removesuffix(".weight")
            if module in self._adapter.modules and name.endswith(".weight"):
                yield name, self._adapter.product(module).add_(tensor)
            else:
                yield name, tensor

    def _check(self) -> None:
        stored = self.tensors
        for module, shape in self._adapter.modules.items():
            if module == _OUTPUT_LAYER and self.ties_output:
                raise ExportRefused("the adapter changes the output layer, which in this base is the embedding too")
            weight = stored.get(f"{module}.weight")
            if weight is None:
                raise ExportRefused(
                    f"the base's files have no weight for {module}: it is another base, or joins layers"
                )
            if tuple(weight.shape) != shape:
                raise ExportRefused(f"the adapter's {module} has shape {shape}, the base's {tuple(weight.shape)}")


def cast(name: str, tensor: Tensor, dtype: torch.dtype | None, stored: TensorInfo) -> Tensor:
    """Round a tensor to `dtype`; None rounds to the type it had in the base. Whole numbers stay as they are.

    Raises ExportRefused when the type cannot hold a value.
    """
    if not tensor.is_floating_point():
        return tensor
    dtype = dtype or _FLOATS[stored.dtype]
    if dtype == torch.float16:
        check_float16(name, tensor)
    return tensor.to(dtype)


def check_float16(name: str, tensor: Tensor, *, scale: float = 1.0) -> None:
    """Raise ExportRefused if float16 cannot hold the tensor's values times `scale`."""
    if tensor.numel() and max(map(abs, map(float, tensor.aminmax()))) * scale > _FLOAT16_MAX:
        raise ExportRefused(f"{name} has values beyond what float16 holds (65,504); take bfloat16 or float32")


def read_config(base: Path) -> dict[str, Any]:
    """Read a base's config.json. Raises ExportRefused."""
    path = base / "config.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ExportRefused(f"{path} cannot be read: {error}") from error


def _file_names(base: Path) -> list[str]:
    try:
        return [path.name for path in weight_files(base)]
    except ValueError as error:
        raise ExportRefused(str(error)) from error


def _header(path: Path) -> dict[str, TensorInfo]:
    try:
        tensors = read_header(path)
    except AdapterRejected as error:
        raise ExportRefused(f"the base's {error.message}") from error
    return dict(sorted(tensors.items(), key=lambda item: item[1].data_offsets))
