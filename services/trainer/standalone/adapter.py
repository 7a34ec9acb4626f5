"""A LoRA adapter in PEFT's format as what it adds to each weight: s·B·A. Axes: O outputs, I inputs, R ranks."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from services.trainer.standalone import ExportRefused
from shared.adapter_form import AdapterForm, read_form
from shared.adapters import CONFIG_NAME, WEIGHTS_NAME
from shared.errors import AdapterRejected
from shared.safetensors_header import TensorInfo, read_header

_PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_ELEMENTS = frozenset({"F32", "F16", "BF16"})


class Adapter:
    """An adapter whose form is known to be mergeable; its matrices are read when they are needed."""

    def __init__(self, folder: Path) -> None:
        """Read the form. Raises ExportRefused for a damaged adapter, and for one that is more than s·B·A."""
        self._path = folder / WEIGHTS_NAME
        self._form = _read_form(folder / CONFIG_NAME)
        try:
            tensors = read_header(self._path)
        except AdapterRejected as error:
            raise ExportRefused(f"{folder}: {error.message}") from error
        self._shapes = {module: self._shape(module, tensors) for module in sorted(_modules(tensors))}
        if not self._shapes:
            raise ExportRefused(f"{self._path} holds no tensors")

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """(O, I) of the linear layers that it changes, such as `model.layers.0.self_attn.q_proj`."""
        return self._shapes

    def product(self, module: str) -> Tensor:
        """Return s·B·A of a module: (O, I), float32."""
        with safe_open(self._path, framework="pt") as weights:
            down_RI = weights.get_tensor(f"{_PREFIX}{module}{_DOWN}").float()
            up_OR = weights.get_tensor(f"{_PREFIX}{module}{_UP}").float()
        return (up_OR @ down_RI).mul_(self._form.scale_of(module))  # type: ignore[no-any-return]

    def _shape(self, module: str, tensors: dict[str, TensorInfo]) -> tuple[int, int]:
        halves = [tensors.get(f"{_PREFIX}{module}{kind}") for kind in (_DOWN, _UP)]
        down, up = halves
        rank = self._form.rank_of(module)
        if down is None or up is None:
            raise ExportRefused(f"the adapter has one half of {module} only")
        if {down.dtype, up.dtype} - _ELEMENTS:
            raise ExportRefused(f"the adapter's {module} has elements of type {down.dtype} and {up.dtype}")
        if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != rank or up.shape[1] != rank:
            raise ExportRefused(
                f"the adapter's {module} has shapes {down.shape} and {up.shape}, which do not fit its rank of {rank}"
            )
        return up.shape[0], down.shape[1]


def _read_form(path: Path) -> AdapterForm:
    try:
        return read_form(path.read_bytes())
    except OSError as error:
        raise ExportRefused(f"{path} cannot be read: {error}") from error
    except AdapterRejected as error:
        raise ExportRefused(f"{path.parent}: {error.message}: not merged") from error


def _modules(tensors: dict[str, TensorInfo]) -> set[str]:
    modules = set()
    for name in tensors:
        kind = next((kind for kind in (_DOWN, _UP) if name.startswith(_PREFIX) and name.endswith(kind)), None)
        if kind is None:
            raise ExportRefused(f"the adapter's tensor {name} is no half of a linear layer's: not merged")
        modules.add(name.removeprefix(_PREFIX).removesuffix(kind))
    return modules
