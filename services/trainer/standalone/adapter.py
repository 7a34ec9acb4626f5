"""A LoRA adapter in PEFT's format as what it adds to each weight: s·B·A. Axes: O outputs, I inputs, R ranks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from safetensors import safe_open
from torch import Tensor

from services.trainer.standalone import ExportRefused
from shared.adapters import CONFIG_NAME, WEIGHTS_NAME
from shared.errors import AdapterRejected
from shared.safetensors_header import TensorInfo, read_header

V = TypeVar("V")

_PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_ELEMENTS = frozenset({"F32", "F16", "BF16"})
# What these say was of use in training, or is checked by name and shape; everything else that PEFT can set changes
# what an adapter computes, and is refused unless it is unset.
_WITHOUT_EFFECT = frozenset({
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_config", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
})  # fmt: skip
_HONOURED = frozenset({"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"})
_ALLOWED: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian"),  # the other ways to begin change the base's weights too
}


class _Form(Struct, frozen=True, rename={"rank": "r", "alpha": "lora_alpha"}):
    rank: int
    alpha: float
    use_rslora: bool = False
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}

    def rank_of(self, module: str) -> int:
        return _matching(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        alpha = _matching(self.alpha_pattern, module, self.alpha)
        rank = self.rank_of(module)
        return float(alpha / rank**0.5 if self.use_rslora else alpha / rank)


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


def _matching(patterns: Mapping[str, V], module: str, default: V) -> V:
    """Return the value of the first pattern that matches a module's name or its end, as PEFT does it."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _read_form(path: Path) -> _Form:
    try:
        config = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        form = msgspec.convert(config, _Form)
        [re.compile(key) for key in (*form.rank_pattern, *form.alpha_pattern)]
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, re.error) as error:
        raise ExportRefused(f"{path} cannot be read: {error}") from error
    for name, value in sorted(config.items()):
        if name in _WITHOUT_EFFECT | _HONOURED:
            continue
        if value not in _ALLOWED[name] if name in _ALLOWED else value:
            raise ExportRefused(
                f"an adapter with {name} = {value!r} is more than a product of two matrices: not merged"
            )
    if form.rank < 1 or any(rank < 1 for rank in form.rank_pattern.values()):
        raise ExportRefused(f"{path}: a rank below 1")
    return form


def _modules(tensors: dict[str, TensorInfo]) -> set[str]:
    modules = set()
    for name in tensors:
        kind = next((kind for kind in (_DOWN, _UP) if name.startswith(_PREFIX) and name.endswith(kind)), None)
        if kind is None:
            raise ExportRefused(f"the adapter's tensor {name} is no half of a linear layer's: not merged")
        modules.add(name.removeprefix(_PREFIX).removesuffix(kind))
    return modules
